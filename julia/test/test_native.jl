# Native fields from programs written by hand: expressions, numbers, allocations.

using PyODE: Lanes, Loop, NativeField, compile, emit, exponential, hyperbolic, kernels, load, logistic,
    store, total

"Call a compiled function on arrays."
function call(f, table, arrays::Vector{Vector{T}}, t) where {T}
    GC.@preserve table arrays begin
        p = [i <= length(arrays) ? pointer(arrays[i]) : Ptr{T}(0) for i in 1:5]
        ccall(
            f, Cvoid, (Ptr{Int}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Float64),
            table, p[1], p[2], p[3], p[4], p[5], t,
        )
    end
    return nothing
end

@testset "elementary functions, $T" for T in (Float32, Float64)
    x = T.(vcat(range(-30, 30; length = 1001), [1.0e-6, -1.0e-6, 0, 88, -200]))
    close(a, b) = abs(a - b) <= 4 * eps(T) * abs(b)
    @test all(close.(hyperbolic.(x), tanh.(x)))
    near = T.(vcat(exp.(range(-20, 3.2; length = 20_001)), range(0, 20; length = 20_001)))
    exact = T.(tanh.(big.(near)))
    @test all(abs.(hyperbolic.(near) .- exact) .<= 3.5 .* eps.(exact))
    @test all(hyperbolic.(near) .<= 1)
    @test all(close.(exponential.(x), exp.(x)))
    @test all(close.(logistic.(x), T.(1 ./ (1 .+ exp.(-big.(x))))))
    @test isequal(hyperbolic.(T[NaN, Inf, -Inf]), T[NaN, 1, -1])
    @test isequal(exponential.(T[NaN, Inf, -Inf]), T[NaN, Inf, 0])
    lanes = GC.@preserve x load(Lanes{4, T}, pointer(x), 3)
    y = zeros(T, 4)
    GC.@preserve y store(pointer(y), 0, hyperbolic(lanes))
    @test y == hyperbolic.(x[4:7])
    @test total(lanes) ≈ sum(x[4:7])
end

# dy = -y + 2t for seven numbers; `f`'s arrays are (dy, y)
const LINE = [1, 0, 1, 7, 0, 1, 1, 4, 0, 1, 1, 0, 1, 1, 1, 4, 2, 2, 4, 3, 1, 0, 2, 0, 1, 4, 4, 2, 1, 2, 2]

@testset "a program is expressions, and compiles to an address" begin
    names, constants = [:add, :add, :neg, :mul], [0.0, 2.0]
    (loop,) = kernels(LINE, constants, names)
    @test loop isa Loop && loop.sizes == [7] && loop.width == 4
    @test emit(loop, Float64) isa Expr
    for T in (Float32, Float64)
        y, dy = T.(1:7), zeros(T, 7)
        call(compile(T, LINE, constants, names), Int[0], [dy, y], 0.5)
        @test dy == -y .+ 1
    end
end

@testset "vectors of $width cover $size numbers, and no others" for size in (5, 17, 18, 24, 31, 33, 50), width in (2, 4, 8, 16)
    size < width && continue
    numbers = copy(LINE)
    numbers[4], numbers[8] = size, width
    y, dy = Float32.(1:size), fill(-1.0f0, size + 16)
    call(compile(Float32, numbers, [0.0, 2.0], [:add, :add, :neg, :mul]), Int[0], [dy, y], 0.5)
    @test dy[1:size] == -y .+ 1
    @test all(dy[(size + 1):end] .== -1)
end

# its vector-Jacobian product, -λ; the fused function's arrays are (dλ, dg, dy, λ, y)
const LINE_BACK = [1, 0, 1, 7, 0, 1, 1, 4, 0, 1, 1, 0, 1, 1, 1, 4, 3, 1, 0, 4, 0, 1]

"A solve of dy = -y + 2t, compiled."
function compiled(T)
    names, none, table = [:add, :add, :neg, :mul], C_NULL, Ptr{Int}(0)
    f, fused = (compile(T, numbers, [0.0, 2.0], names) for numbers in (LINE, LINE_BACK))
    native = NativeField{T}(f, none, none, fused, none, table, false, none, 7, 0)
    return Field{T}(; f! = nothing, n = 7, np = 0, native)
end

@testset "a native field is solved, counted, and allocates nothing, $T" for T in (Float32, Float64)
    field = compiled(T)
    set = options(T; tol = 1.0e-5)
    fwd = forward(field, T.(1:7), T[0, 1], algorithm("Tsit5"), set)
    exact = (T.(1:7) .+ 2) .* exp(-T(1))  # + 2t - 2, at t = 1
    @test fwd.states[:, 2] ≈ exact rtol = 1.0e-4
    @test field.native.nfe >= 6 * fwd.report.accepted
    @test PyODE.counted!(field.native)[1] > 0
    @test field.native.nfe == 0
    rhs = PyODE.odefunction(field, false).f
    du, u, p, t = zeros(T, 7), ones(T, 7), T[], T(0.3)
    work(n) = (for _ in 1:n; rhs(du, u, p, t); end)
    work(2)
    @test (@allocated work(1000)) == (@allocated work(1))
end

@testset "a solve is stopped by its owner" begin
    stop = @cfunction(t -> Cint(0), Cint, (Float64,))
    field = compiled(Float64)
    n = field.native
    field.native = NativeField{Float64}(
        n.f, n.vjp, n.vjp_p, n.fused, n.vjp_t, n.table, false, stop, 7, 0,
    )
    field.native.polled = 0.0
    @test_throws PyODE.CallFailed forward(
        field, ones(7), [0.0, 1.0], algorithm("Tsit5"), options(),
    )
end
