# The exact gradient of the steps taken: each of them transposed, last to first.

"""
    Transposed{T}

One backward pass. With cotangents a_i of k_i, and μ_i = (∂f/∂u)ᵀ a_i at stage i, and λ that of the
step's end: a_i = h (b_i λ + Σ_{j>i} a[j, i] μ_j + Σ_θ w_i(θ) g_θ) and λ at its start is
λ + Σ_i μ_i + Σ_θ g_θ, where g_θ is the cotangent of an output at θ inside the step.

A chained method's first stage is pulled back together with the last one of the step before, which is
f at the same place: `link` is its cotangent until then.
"""
struct Transposed{T, F}
    field::F
    tape::Tape{T}
    λ::Vector{T}
    link::Vector{T}
    outputs::Matrix{T}
    μ::Matrix{T}
    live::Vector{Bool}
    weights::Vector{T}
    point::Vector{T}
    a::Vector{T}
    dg::Vector{T}
    dy::Vector{T}
    p::Vector{T}
    stages::Matrix{T}
    k::Matrix{T}
end

function Transposed(field::Field{T}, tape) where {T}
    (; n, np) = field
    s, again = stages(tape.tableau), tape.whole ? 0 : stages(tape.tableau)
    state(m...) = zeros(T, n, m...)
    return Transposed{T, typeof(field)}(
        field, tape, state(), state(), state(s), state(s), fill(false, s), zeros(T, s), state(),
        state(), zeros(T, np), state(), zeros(T, np), state(again), state(again),
    )
end

"""
    discrete(fwd, g) -> Gradient

Pull `g` (`n × m`, ∂L/∂u at each output) back through the steps of a forward solve. Step sizes are
constants. Cost: a fused vjp for each evaluation of f in an accepted step.
"""
function discrete(fwd::Forward{T}, g) where {T}
    field, tape = fwd.field, fwd.tape
    back = Transposed(field, tape)
    field.peak = bytes(tape)
    count, i = length(tape.ends), length(fwd.ts)
    code, n = "Success", count
    try
        while n > 0 && code == "Success"
            i = transpose!(back, n, fwd.ts, g, i)
            finite(back.λ) || (code = "Unstable")
            n -= 1
        end
        tape.tableau.chained && count > 0 && code == "Success" && pull_first!(back)
    catch err
        err isa OutOfTime || rethrow()
        code = "OutOfTime"
    end
    code == "Success" && !all(isfinite, back.p) && (code = "Unstable")
    at = max(n, 1)
    ended = Report(;
        code, t = Float64(field.sign * tape.starts[at]), dt = Float64(tape.lengths[at]),
        top = Float64(maximum(abs, back.λ; init = zero(T))), accepted = 0, rejected = 0,
    )
    return Gradient(back.λ, back.p, Float64[], 0.0, ended)
end

"Step `n` transposed; outputs up to `i` are not in λ yet. Returns the last of those that are not."
function transpose!(back::Transposed{T}, n, ts, g, i) where {T}
    (; field, tape, λ, link, outputs, μ, live) = back
    (; chained) = tape.tableau
    h, s = tape.lengths[n], stages(tape.tableau)
    if i > 1 && ts[i] == tape.ends[n]
        add!(λ, one(T), view(g, :, i))
        i -= 1
    end
    first = inside!(back, n, ts, g, i)
    inner = first < i
    tape.whole || replay!(back.stages, back.k, back.point, field, tape, n, inner)
    if chained && (n < length(tape.ends) || inner)
        # f at the step's end, and through it that end itself
        copyto!(back.a, link)
        inner && add!(back.a, one(T), view(outputs, :, s))
        pull!(back, n, s)
        add!(λ, one(T), view(μ, :, s))
    end
    last = chained ? s - 1 : s
    for j in last:-1:1
        live[j] = cotangent!(back, h, j, last, inner)
        if chained && j == 1
            copyto!(link, back.a)
        elseif live[j]
            pull!(back, n, j)
        end
    end
    for j in (chained ? 2 : 1):last
        live[j] && add!(λ, one(T), view(μ, :, j))
    end
    for k in (first + 1):i
        add!(λ, one(T), view(g, :, k))
    end
    return first
end

"The cotangent of k_j of a step, in `back.a`; false where nothing depends on it."
function cotangent!(back::Transposed{T}, h, j, last, inner) where {T}
    (; λ, outputs, μ, live) = back
    (; a, b) = back.tape.tableau
    inner = inner && any(!iszero, view(outputs, :, j))
    used = inner || b[j] != 0
    weight = h * b[j]
    @inbounds @simd for k in eachindex(back.a)
        back.a[k] = weight * λ[k]
    end
    inner && add!(back.a, one(T), view(outputs, :, j))
    for m in (j + 1):last
        live[m] && a[m, j] != 0 || continue
        add!(back.a, h * a[m, j], view(μ, :, m))
        used = true
    end
    return used
end

"What the outputs inside step `n` put on its stages; returns the last output before the step."
function inside!(back::Transposed{T}, n, ts, g, i) where {T}
    (; tape, outputs, weights) = back
    start, h = tape.starts[n], tape.lengths[n]
    i > 1 && ts[i] > start || return i
    fill!(outputs, 0)
    while i > 1 && ts[i] > start
        weights!(weights, tape.tableau, (ts[i] - start) / h)
        for j in eachindex(weights)
            weights[j] == 0 || add!(view(outputs, :, j), h * weights[j], view(g, :, i))
        end
        i -= 1
    end
    return i
end

"μ of stage `j` of step `n` from its cotangent `back.a`; the parameters' gradient is added."
function pull!(back::Transposed, n, j)
    (; tape, stages) = back
    (; chained, c) = tape.tableau
    t = tape.starts[n] + c[j] * tape.lengths[n]
    point = !tape.whole ? view(stages, :, j) : view(tape.points[n + 1], :, chained ? j - 1 : j)
    fused!(back, view(back.μ, :, j), point, t)
    return nothing
end

"A chained method's very first stage."
function pull_first!(back::Transposed{T}) where {T}
    copyto!(back.a, back.link)
    μ = view(back.μ, :, 1)
    fused!(back, μ, view(back.tape.points[1], :, 1), back.tape.starts[1])
    add!(back.λ, one(T), μ)
    return nothing
end

function fused!(back::Transposed{T}, μ, point, t) where {T}
    (; field, a, dg, dy) = back
    hurry(field, t)
    copyto!(back.point, point)  # a buffer of few addresses, for a callback to know again
    field.sign < 0 && (a .= .-a)
    n, at = field.native, field.sign * t
    n === nothing ? field.fused!(μ, dg, dy, a, back.point, at) : fused!(n, μ, dg, dy, a, back.point, at)
    watch!(field, "the vector-Jacobian product of f", μ, t)
    add!(back.p, one(T), dg)
    return nothing
end
