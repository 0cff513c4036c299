# The exact gradient of the steps taken.

using PyODE: NotReadable, StepNotSeen, Tape, Transposed, bytes, discrete, interpolate, note!, tableau,
    transpose!, weights!

const EXPLICIT = ("Euler", "Midpoint", "Heun", "RK4", "BS3", "DP5", "Tsit5", "Vern7", "Vern9")

@testset "a solver's tableau is read off it: $name" for name in EXPLICIT
    read = tableau(algorithm(name), Float64)
    (; a, b, c, chained) = read
    order = PyODE.SciMLBase.alg_order(algorithm(name))
    @test sum(b) ≈ 1 rtol = 1e-14
    @test vec(sum(a; dims = 2)) ≈ c atol = 1e-13
    @test order < 2 || isapprox(sum(b .* c), 1 / 2; rtol = 1e-13)
    @test order < 3 || isapprox(sum(b .* c .^ 2), 1 / 3; rtol = 1e-13)
    @test chained == !startswith(name, "Vern")
    w = zeros(length(b))
    @test weights!(w, read, 0.0) ≈ zero(b) atol = 1e-14
    @test weights!(w, read, 1.0) ≈ b atol = 1e-11
    @test sum(weights!(w, read, 0.3)) ≈ 0.3 rtol = 1e-12
end

@testset "an implicit method has none" begin
    @test_throws NotReadable tableau(algorithm("KenCarp4"), Float64)
end

const OUTPUTS = [0, 0.013, 0.2, 0.21, 0.4, 0.77, 0.99, 1]

"A fixed-step or adaptive solve of y' = (cos(t) + y₂ p₁, sin(y₁ p₂) - y₂): it depends on time."
function wave(p, T = Float64; sign = 1)
    f!(du, u, t) = (du .= (cos(t) + u[2] * p[1], sin(u[1] * p[2]) - u[2]); nothing)
    function fused!(dλ, dg, dy, λ, u, t)
        f!(dy, u, t)
        slope = cos(u[1] * p[2]) * λ[2]
        dλ .= (slope * p[2], λ[1] * p[1] - λ[2])
        dg .= (λ[1] * u[2], slope * u[1])
        return nothing
    end
    return Field{T}(; f!, fused!, n = 2, np = 2, sign = T(sign))
end

const CUT = [0.31, 0.5]  # stops
settings(T, name, step) = step ?
    options(T; adaptive = false, dt = T(0.05), tstops = T.(CUT)) :
    # in longer steps rounding by the large coefficients of Vern7's dense output shows
    options(T; tol = T == Float64 ? 1e-7 : 1e-4, tstops = T.(CUT), dtmax = T(0.15))

function waved(p, u0, name; T = Float64, step = true, keep = "stages", sign = 1)
    return forward(
        wave(p, T; sign), T.(u0), T.(OUTPUTS), algorithm(name), settings(T, name, step); keep,
    )
end

const COTANGENT = [sin(3i + j) for i in 1:2, j in eachindex(OUTPUTS)]
value(p, u0, name; sign = 1) = sum(COTANGENT .* waved(p, u0, name; keep = "outputs", sign).states)

"A derivative by differences of order six."
slope(f, h = 1e-2) =
    (45 * (f(h) - f(-h)) - 9 * (f(2h) - f(-2h)) + (f(3h) - f(-3h))) / 60h

@testset "fixed steps by $name, time $sign: the gradient is that of differences" for
        name in EXPLICIT, sign in (1, -1)

    p, u0 = [0.7, 1.3], [0.4, -0.2]
    fwd = waved(p, u0, name; sign)
    found = gradient(fwd, "discrete", COTANGENT, algorithm(name), options())
    @test found.report.code == "Success"
    unit(i) = [i == 1, i == 2]
    du0 = [slope(h -> value(p, u0 .+ h .* unit(i), name; sign)) for i in 1:2]
    dp = [slope(h -> value(p .+ h .* unit(i), u0, name; sign)) for i in 1:2]
    @test found.λ .+ COTANGENT[:, 1] ≈ du0 rtol = 1e-10
    @test found.p ≈ dp rtol = 1e-10
end

@testset "outputs are OrdinaryDiffEq's, between steps too: $name, $T, $keep" for
        name in EXPLICIT, T in (Float64, Float32), keep in ("stages", "steps")

    step = PyODE.SciMLBase.alg_order(algorithm(name)) in (1, 2, 4)
    fwd = waved([0.7, 1.3], [0.4, -0.2], name; T, step, keep)
    mine = [interpolate(fwd, T(t))[i] for i in 1:2, t in OUTPUTS]
    @test mine ≈ fwd.states rtol = (name == "Vern9" ? 1000 : 50) * eps(T)
    @test !step || length(fwd.tape.ends) == 21
    @test fwd.tape.ends[end] == 1 && all(t -> T(t) in fwd.tape.ends, CUT)
end

@testset "steps of $name are computed again alike, $T" for
        name in ("BS3", "DP5", "Tsit5", "Vern7", "Vern9"), T in (Float64, Float32)

    one, two = (
        gradient(
                waved([0.7, 1.3], [0.4, -0.2], name; T, step = false, keep), "discrete",
                T.(COTANGENT), algorithm(name), options(T),
            ) for keep in ("stages", "steps")
    )
    @test one.λ ≈ two.λ rtol = 100 * eps(T)
    @test one.p ≈ two.p rtol = 100 * eps(T)
end

@testset "$name: near the equation's own gradient, as the tolerance is" for
        name in ("BS3", "DP5", "Tsit5", "Vern7", "Vern9")

    tol = name == "BS3" ? 1e-8 : 1e-10
    fwd, found = answer("discrete", name; keep = "stages", tol)
    @test relative(found.λ, DU0) < 5 * tol
    @test relative(found.p, DP) < 5 * tol
    # an output without a loss costs nothing, nor do stages of the error estimate
    @test calls(:fused) == stages_of_a_step(name) * fwd.report.accepted
    @test calls(:f) == calls(:fused)  # inside the fused ones: nothing is computed again
end

@testset "no allocation for a step" begin
    for keep in ("stages", "steps"), T in (Float32, Float64)
        field = compiled(T)
        fwd = forward(
            field, T.(1:7), T[0, 0.003, 1], algorithm("Tsit5"),
            options(T; adaptive = false, dt = T(0.01)); keep,
        )
        back = Transposed(field, fwd.tape)
        g = ones(T, 7, 3)
        work(n) = (for k in n:-1:1; transpose!(back, k, fwd.ts, g, 2); end)
        work(3)
        @test (@allocated work(90)) == (@allocated work(1))
    end
end

@testset "what is not a step as it was read is noticed" begin
    read = tableau(algorithm("DP5"), Float64)
    tape = Tape{Float64}(read, [1.0], true)
    ended(dt) = (; tprev = 0.0, dt, t = dt, u = [1.0])
    foreach(t -> note!(tape, [1.0], t), read.c[2:end] .* 0.1)
    @test_throws StepNotSeen tape(ended(0.2))
end

@testset "a tape in the caller's memory, and beyond it" begin
    ts, g = [0.0, 0.6, 1.0], [0.0 0.3 1.0; 0.0 -0.2 0.5]
    for keep in ("stages", "steps")
        function gradient_with(room)
            field = wave([0.7, 1.3])
            field.room = room
            fwd = forward(field, [0.4, -0.2], ts, algorithm("Tsit5"), options(); keep)
            return discrete(fwd, g), fwd
        end
        free, fwd = gradient_with(Float64[])
        @test fwd.tape.used == 0
        step = length(fwd.tape.ring)
        count = length(fwd.tape.ends)
        for room in (fill(NaN, step * count), fill(NaN, 2step + 1))
            found, held = gradient_with(room)
            @test found.λ == free.λ && found.p == free.p
            @test held.tape.used == min(length(room) ÷ step, count) * step
            @test all(isfinite, room[1:(held.tape.used)])
            @test bytes(held.tape) == bytes(fwd.tape)
            @test interpolate(held, 0.3) == interpolate(fwd, 0.3)
        end
    end
end

@testset "NaN and the clock on the way back" begin
    field = wave([0.7, 1.3])
    fwd = forward(
        field, [0.4, -0.2], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "stages",
    )
    right = field.fused!
    field.fused! = (dλ, dg, dy, λ, u, t) -> t > 0.4 ? right(dλ, dg, dy, λ, u, t) : (dλ .= NaN; nothing)
    found = discrete(fwd, ones(2, 2))
    @test found.report.code == "Unstable"
    @test 0 < found.report.t < 0.5 && field.trouble.t <= 0.4
    @test occursin("vector-Jacobian", field.trouble.what)
    field.fused!, field.deadline = right, 0.0
    @test discrete(fwd, ones(2, 2)).report.code == "OutOfTime"
end
