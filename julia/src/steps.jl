# Step sizes of explicit methods: the caller's controller, in OrdinaryDiffEq's loop.

"""
    Controller(; p, i, d, safety, least, most)

The next step is `h · safety · e_n^(-(i+p+d)/k) · e_(n-1)^((p+2d)/k) · e_(n-2)^(-d/k)`, with e the scaled
error and k the order of the error estimate plus one; a step grows and shrinks by at most `most` and
`least`.
"""
Base.@kwdef struct Controller
    p::Float64 = 0.0
    i::Float64 = 1.0
    d::Float64 = 0.0
    safety::Float64 = 0.9
    least::Float64 = 0.2
    most::Float64 = 10.0
end

# as in pyode/_torch/loop.py: of the first step; of steps that would nearly reach a stop; how far a hint
# may lead from the estimate of the first step, and its share
const START, STRETCH, HINT, SHORT = 0.3, 1.05, 8.0, 0.8

"""
    Steps

A `Controller` at work. `stops`: times at which steps end, multiplied by the direction, increasing.
`intended`: the step size that no stop has cut short. `forced`: steps accepted above the tolerance because of
`low`, the worst by a factor of `worst`.
"""
mutable struct Steps <: OrdinaryDiffEqCore.AbstractController
    const control::Controller
    const order::Int
    const low::Float64
    const high::Float64
    const stops::Vector{Float64}
    next::Int
    intended::Float64
    errors::NTuple{2, Float64}
    rejected::Bool
    forced::Int
    worst::Float64
end

function Steps(control, alg, low, high, stops)
    order = OrdinaryDiffEqCore.alg_adaptive_order(alg) + 1
    return Steps(control, order, low, high, stops, 1, 0.0, (1.0, 1.0), false, 0, 0.0)
end

if isdefined(OrdinaryDiffEqCore, :setup_controller_cache)
    OrdinaryDiffEqCore.setup_controller_cache(alg, atmp, steps::Steps) = steps
end
OrdinaryDiffEqCore.stepsize_controller!(integ, ::Steps, alg) = one(integ.dt)
OrdinaryDiffEqCore.accept_step_controller(integ, ::Steps) = integ.EEst <= 1

function OrdinaryDiffEqCore.step_accept_controller!(integ, steps::Steps, alg, q)
    (; control, order) = steps
    size, error = Float64(abs(integ.dt)), Float64(integ.EEst)
    if error > 1
        steps.forced += 1
        steps.worst = max(steps.worst, error)
    end
    error = max(error, 1.0e-10)
    before, earlier = steps.errors
    (; p, i, d) = control
    factor = control.safety * error^(-(i + p + d) / order)
    factor *= before^((p + 2d) / order) * earlier^(-d / order)
    ceiling = steps.rejected ? 1.0 : control.most
    proposal = size * min(ceiling, max(control.least, factor))
    # a step cut short by a stop says nothing against the size that was intended
    short = size < steps.intended * (1 - 1.0e-9) && !steps.rejected
    steps.intended = short ? max(proposal, steps.intended) : proposal
    steps.errors, steps.rejected = (error, before), false
    return length_from(steps, integ, integ.t + integ.dt)
end

function OrdinaryDiffEqCore.step_reject_controller!(integ, steps::Steps, alg)
    (; control, order, low) = steps
    size, error = Float64(abs(integ.dt)), Float64(integ.EEst)
    factor = isfinite(error) ? max(control.least, control.safety * error^(-1 / order)) : control.least
    steps.intended = max(size * min(factor, 0.9), min(low, size))
    steps.rejected = true
    integ.dt = length_from(steps, integ, integ.t)
    return nothing
end

"""
The signed length of the step from `t` that neither passes the next stop nor leaves a sliver before it:
steps that would nearly reach it, in one or two, are stretched to.
"""
function length_from(steps::Steps, integ, t)
    (; stops) = steps
    at, size = Float64(integ.tdir * t), clamp(steps.intended, min(steps.low, steps.high), steps.high)
    slack = 100 * eps(typeof(t)) * max(abs(at), abs(stops[end]))
    while steps.next < length(stops) && stops[steps.next] <= at + slack
        steps.next += 1
    end
    left, most = stops[steps.next] - at, min(STRETCH * size, steps.high)
    if most >= left > 0
        size = left
    elseif 2 * most > left > 0
        size = left / 2
    end
    return oftype(integ.dt, integ.tdir * size)
end

"""
Hairer, Nørsett, Wanner (1993), II.4: from u, f and one Euler step; `norm` leaves out what begins at zero, and
`hint` is a step size that did elsewhere, or 0. Cost: one evaluation of f, or two.
"""
function first_step(integ, steps::Steps, norm, hint)
    (; u, t, tdir, p) = integ
    (; abstol, reltol) = integ.opts
    span = steps.stops[end] - Float64(tdir * t)
    k0 = integ.fsalfirst
    if k0 === nothing
        k0 = similar(u)
        integ.f(k0, u, p, t)
    end
    scale = abstol .+ reltol .* abs.(u)
    d0, d1 = Float64(norm(u ./ scale, t)), Float64(norm(k0 ./ scale, t))
    small = d0 < 1.0e-5 || d1 < 1.0e-5 || d1 == Inf
    h0 = min(small ? 1.0e-6 * span : 0.01 * d0 / d1, span)
    isfinite(h0) || return h0
    step, k1 = oftype(t, tdir * h0), similar(u)
    integ.f(k1, u .+ step .* k0, p, t + step)
    d2 = Float64(norm((k1 .- k0) ./ scale, t)) / h0
    isfinite(d2) || return h0
    top = max(d1, d2)
    h1 = top <= 1.0e-15 ? max(1.0e-6 * span, h0 * 1.0e-3) : (START / top)^(1 / steps.order)
    # not below what the clock resolves: whether that is short enough is the error's to say
    h = min(max(min(100 * h0, h1), 100 * eps(Float64) * abs(Float64(t))), span)
    return max(h, min(SHORT * hint, HINT * h))
end

"Choose the first step of an integrator that was made with `Steps`."
function start!(integ, steps::Steps, given, norm, hint)
    steps.intended = given > 0 ? Float64(given) : first_step(integ, steps, norm, Float64(hint))
    integ.dt = length_from(steps, integ, integ.t)
    return nothing
end

"The size that a solve ended with, and would have gone on with; 0 where SciML's own controllers chose."
intended(integ) = (c = integ.opts.controller; c isa Steps ? c.intended : 0.0)
"Steps that were accepted above the tolerance, and the worst of their errors."
forced(integ) = (c = integ.opts.controller; c isa Steps ? (c.forced, c.worst) : (0, 0.0))
