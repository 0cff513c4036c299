# What the first gradient of a process would wait for is compiled with the package: the solvers that are
# asked for most, for both types of numbers. `precompile_workload = false` among PyODE's preferences
# leaves it out.

# f = -u p with p = 1, as a native field's C functions
decay!(table, du, u, x, y, z, t) = (unsafe_store!(du, -unsafe_load(u)); nothing)
decay_vjp!(table, dλ, λ, u, y, z, t) = (unsafe_store!(dλ, -unsafe_load(λ)); nothing)
decay_vjp_p!(table, dg, λ, u, y, z, t) =
    (unsafe_store!(dg, -unsafe_load(λ) * unsafe_load(u)); nothing)
function decay_fused!(table, dλ, dg, du, λ, u, t)
    decay!(table, du, u, u, u, u, t)
    decay_vjp!(table, dλ, λ, u, u, u, t)
    return decay_vjp_p!(table, dg, λ, u, u, u, t)
end
decay_prepare!(table, v, w, x, y, z, t) = nothing

for T in (Float32, Float64)
    types = :((Ptr{Int}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Float64))
    names = (:decay!, :decay_vjp!, :decay_vjp_p!, :decay_fused!, :decay_prepare!)
    addresses = [:(Int(@cfunction($name, Cvoid, $types))) for name in names]
    @eval decay(::Type{$T}) = ($(addresses...),)
end

"One gradient, by the calls that `pyode/_julia/session.py` makes."
function rehearse(T, solver, adjoint, keep)
    f, vjp, vjp_p, fused, prepare = decay(T)
    at(x) = Int(pointer(x))
    times, settings = [0.0, 0.5, 1.0], [1.0e-3, 1.0e-3, 1, 0, 0, 1, 1000, 0, 1, 0, 0.9, 0.2, 10]
    u0, λ, p, last, ys, g = ones(T, 1), zeros(T, 1), zeros(T, 1), zeros(T, 1), zeros(T, 3), ones(T, 3)
    told = zeros(64)
    GC.@preserve times settings u0 λ p last ys g told begin
        of = [1, 1, 1, f, vjp, vjp_p, fused, 0, 0, 0]
        there = [
            at(u0), 0, at(times), 3, at(settings), length(settings), 0, 0, 0, at(ys), 0, at(told), prepare, 0, 0,
        ]
        pieces = [at(p), 1]
        back = [at(g), at(settings), length(settings), at(λ), at(last), at(pieces), 1, at(told), prepare]
        GC.@preserve of there back pieces begin
            field = native_of(lowercase(string(T)), at(of), adjoint != "gauss")
            ready = ready_at(field, solver, keep, at(there))
            pulling = pulling_at(field, adjoint, solver, at(back), true, false, 1.0e-3, 1.0e-3)
            GC.@preserve field ready pulling begin
                rehearse_crossing(map(address_of, (field, ready, pulling))..., at(there), at(back))
            end
        end
    end
    return λ[1], p[1]
end

"The same, as the caller makes them."
function rehearse_crossing(field, ready, pulling, there, back)
    forwards, backwards, releases = map(Ptr{Cvoid}, crossings())
    held = ccall(forwards, Int, (Int, Int, Int, Float64), field, ready, there, Inf)
    ccall(backwards, Int, (Int, Int, Int, Float64), held, pulling, back, Inf)
    return ccall(releases, Cvoid, (Int,), held)
end

"A layer of a network and one of its products backwards: the expressions that programs are made of."
function rehearse_expressions(T)
    numbers = [1, 0, 1, 7, 0, 1, 1, 4, 0, 1, 1, 0, 1, 1, 1, 4, 2, 2, 4, 3, 1, 0, 2, 0, 1, 4, 4, 2, 1, 2, 2]
    program = kernels(numbers, [0.0, 2.0], [:add, :add, :neg, :mul])
    width = 32 ÷ sizeof(T)
    weights(strides...) = Access(6, 0, [strides...])
    product(a, b) = Call(:mul, Term[a, b])
    of(op, x) = Call(op, Term[x])
    input, bias = Access(2, 0, [0, 1]), Access(7, 0, [1, 0])
    post = of(:tanh, Call(:add, Term[Sum(), bias]))
    outer = Loop([40, 3], 1, :add, 1, width, 0, 1, Access(8, 0, [1, 0]), product(weights(1, 40), input), post)
    inner = Loop([3, 41], 1, :add, 2, width, 1, 2, Access(1, 0, [1, 0]), product(weights(41, 1), input), Sum())
    plain = Loop([40], 0, :add, 1, width, 0, 1, Access(8, 0, [1]), Sum(), product(Access(8, 0, [1]), Literal(2.0)))
    return definition(:rehearsed, T, [program; outer; inner; plain])
end

"What the loops of a network with tanh do with the processor's vectors."
function rehearse_lanes(::Type{L}, x::Vector{T}) where {L, T}
    GC.@preserve x begin
        p = pointer(x)
        held = splat(L, zero(T))
        held = muladd(load(L, p, 0), load(T, p, 1), held)
        held = hyperbolic(held + load(L, p, 0)) * load(L, p, 0) - held
        store(p, 0, held)
        return total(held)
    end
end

"""
How many types of ReverseDiff's tracked arrays there are, which are inside their own supertype. An image with one
may crash Julia when it is loaded (JuliaLang/julia#62047; 1.10 to 1.12). Inference makes some where it follows
calls of SciML's with arguments it does not know: so `forward`, `gradient` and `pull_back` are called behind
`inferencebarrier`.
"""
function tracked()
    id = Base.PkgId(Base.UUID("37e2e3b7-166d-5795-8a7a-e32c996b4267"), "ReverseDiff")
    haskey(Base.loaded_modules, id) || return 0
    name = Base.unwrap_unionall(Base.loaded_modules[id].TrackedArray).name
    # both are filled in part, and only types are counted
    return sum((name.cache, name.linearcache)) do cache
        count(i -> isassigned(cache, i) && cache[i] isa DataType, 1:length(cache))
    end
end

@compile_workload begin
    for T in (Float32, Float64)
        rehearse_expressions(T)
        for width in (16, 32, 64)
            rehearse_lanes(Lanes{width ÷ sizeof(T), T}, ones(T, 16))
        end
        for solver in ("DP5", "Tsit5")
            rehearse(T, solver, "discrete", "stages")
            rehearse(T, solver, "interpolating", "dense")
            rehearse(T, solver, "gauss", "dense")
        end
    end
    empty!(TABLEAUS)
    if tracked() != 0
        @warn "These versions of SciML's packages bring types of ReverseDiff into PyODE's image, which Julia may " *
            "crash on (JuliaLang/julia#62047): PyODE is loaded without one, and every start compiles it again. " *
            "Write [PyODE] and precompile_workload = false to LocalPreferences.toml beside the project's " *
            "Project.toml: the first gradient of a process then takes ten seconds longer, and that is all."
        Base.__precompile__(false)
    end
end
