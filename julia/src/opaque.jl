# One Julia type for every right-hand side and every callback: a solver is then compiled once, for
# the forward solve and the backward one of each adjoint alike.

"A function behind one type; a call costs one dynamic dispatch."
struct Opaque <: Function
    call::Any
end
# an `affect!(integ)`, an `initialize(callback, u, t, integ)`, a `condition(u, t, integ)`
(f::Opaque)(integ) = (f.call(integ); nothing)
(f::Opaque)(callback, u, t, integ) = (f.call(callback, u, t, integ); nothing)

"""
A right-hand side or a derivative of one. Its time goes through memory: as an argument of a call that
is not known it would be allocated.
"""
struct Hidden{T} <: Function
    call::Any
    time::Base.RefValue{T}
end
Hidden{T}(call) where {T} = Hidden{T}(call, Ref(zero(T)))
(f::Hidden)(du, u, p, t) = (f.time[] = t; timed(f.call, du, u, p, f.time); nothing)
(f::Hidden)(dλ, λ, u, p, t) = (f.time[] = t; timed(f.call, dλ, λ, u, p, f.time); nothing)
timed(call, du, u, p, time::Base.RefValue) = (call(du, u, p, time[]); nothing)
timed(call, dλ, λ, u, p, time::Base.RefValue) = (call(dλ, λ, u, p, time[]); nothing)

struct Condition <: Function
    call::Any
end
(f::Condition)(u, t, integ) = f.call(u, t, integ)::Bool

"A callback behind one type."
function opaque(callback::DiscreteCallback)
    return DiscreteCallback(
        Condition(callback.condition), Opaque(callback.affect!),
        Opaque(callback.initialize), Opaque(callback.finalize), callback.save_positions,
    )
end

"A callback of ours: what it does says when."
opaque(work) = opaque(DiscreteCallback(work, work; save_positions = (false, false)))

"A callback that does nothing."
idle() = opaque(Idle())
struct Idle end
(::Idle)(u, t, integ) = false
(::Idle)(integ) = nothing

"`f!(du, u, p, t)` as SciML takes it; derivatives that are not there are never asked for."
function odefunction(T, f!; vjp = nothing, vjp_p = nothing, jac = nothing, tgrad = nothing)
    derivatives = (; vjp = Hidden{T}(vjp), vjp_p = Hidden{T}(vjp_p))
    if jac !== nothing
        derivatives = (; derivatives..., jac = Hidden{T}(jac), tgrad = Hidden{T}(tgrad))
    end
    return ODEFunction{true, SciMLBase.FullSpecialize}(Hidden{T}(f!); derivatives...)
end

"""
    Retimed(f!)

Kvaerno5's second stage is asked for at t + γ dt where t + 2γ dt is meant (in OrdinaryDiffEqSDIRK
1.12; y' = cos(t) shows nothing, y' = cos(t) y order 3): f! is called at the right time.
"""
mutable struct Retimed
    const f!::Any
    integ::Any
end
retimed(f!, alg) = alg isa Kvaerno5 ? Retimed(f!, nothing) : f!

function (r::Retimed)(du, u, p, t)
    if r.integ !== nothing
        start, dt = r.integ.t, r.integ.dt
        γ = oftype(dt, KVAERNO)
        abs(t - start - γ * dt) < abs(dt) / 1000 && (t = start + 2γ * dt)
    end
    return r.f!(du, u, p, t)
end
const KVAERNO = 0.26  # γ; no stage of the method is at t + γ dt

# the settings go with the problem too, for the solves between checkpoints that SciML does again
problem(f, u0, span, p, o, norm) =
    ODEProblem(f, u0, span, p; o.maxiters, verbose = false, internalnorm = norm)

"""
    begin_solve(prob, alg, options; own, jumps, dense, outputs, stops, norm, hint)

An integrator, every setting given: SciML's defaults depend on each other. `own` and `jumps` are
callbacks; `dense` keeps every step, otherwise the states at `outputs` are kept. For the controller of
explicit methods: `stops`, where `jumps` stop, and `norm` and `hint` as `first_step` has them.
"""
function begin_solve(
        prob, alg, o::Options{T}; own = idle(), jumps = idle(), dense = false, outputs = T[],
        stops = T[], norm = prob.kwargs[:internalnorm], hint = 0,
    ) where {T}
    low, high = minmax(prob.tspan...)
    dtmax = min(o.dtmax, high - low)
    steps = implicit(alg) || !o.adaptive ? nothing :
        Steps(o.control, alg, o.dtmin, dtmax, targets(prob.tspan, stops, o.tstops))
    dt = o.dt > 0 ? o.dt : steps === nothing ? nothing : dtmax
    callback, save_start = CallbackSet(own, jumps), dense || !isempty(outputs)
    # a call of its own: what is made of numbers of known types is not looked up as it runs
    integ = initial(prob, alg, o, o.reltol, o.abstol, steps, dt, dtmax, callback, dense, save_start, outputs)
    prob.f.f.call isa Retimed && (prob.f.f.call.integ = integ)
    steps === nothing || start!(integ, steps, o.dt, norm, hint)
    return integ
end

initial(prob, alg, o, reltol, abstol, controller, dt, dtmax, callback, dense, save_start, outputs) = init(
    prob, alg;
    reltol, abstol, o.adaptive, o.maxiters, verbose = false, dtmax, o.dtmin, force_dtmin = o.dtmin > 0, controller,
    dt, o.tstops, callback, dense, save_everystep = dense, save_start, saveat = outputs,
    internalnorm = prob.kwargs[:internalnorm],
)

"Times between two ends, and the last of these, multiplied by their direction and sorted."
function targets((start, stop), times...)
    sign = start <= stop ? 1 : -1
    found = Float64[stop]
    for part in times, t in part
        sign * start < sign * t < sign * stop && push!(found, t)
    end
    return unique!(sort!(sign .* found))
end
