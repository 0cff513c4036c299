# y(t) as SciML's adjoints read it: dense, or solved again between two states held.

"""
    Trajectory

To SciML this is a dense solution. `part` is one over [low, high]: the whole interval, or that
between two neighbours among `states`, at `times`, which is solved again when it is read; one is
held at a time. `steps`: times of the steps taken, where the same steps are taken again (explicit
methods); elsewhere the error control chooses them anew.

SciML's own checkpointing is not used: it solves a dense solution again, reads states off the steps
by a straight line, extrapolates before the first, and does not look at how a solve ended.
"""
mutable struct Trajectory{T, V, P, F}
    const prob::P
    const alg::Any
    const field::F
    const options::Options{T}
    const times::Vector{T}
    const states::Vector{V}
    const steps::Vector{T}
    const dense::Bool
    part::Any
    low::T
    high::T
end

"A dense solution, whole."
function Trajectory(field::Field{T}, prob, alg, options, sol) where {T}
    return Trajectory(
        prob, alg, field, options, sol.t, sol.u, T[], true, dense_output(sol, alg, options.tstops),
        sol.t[1], sol.t[end],
    )
end

"States at some times."
function Trajectory(field::Field{T}, prob, alg, options, times, states, steps) where {T}
    nowhere = (T(Inf), T(-Inf))
    return Trajectory(
        prob, alg, field, options, times, states, steps, true, nothing, nowhere...,
    )
end

SymbolicIndexingInterface.state_values(traj::Trajectory) = traj.states

function (traj::Trajectory)(y, t; continuity = :left)
    low, high = interval(traj, t)
    traj.part(y, clamp(t, low, high))
    return nothing
end

"The interval with t over which y(t) is dense."
function interval(traj::Trajectory{T}, t) where {T}
    # a step back to a checkpoint may miss it by a rounding error, and is not worth a solve
    slack = 8 * eps(T) * max(abs(traj.low), abs(traj.high))
    traj.low - slack <= t <= traj.high + slack || replay!(traj, t)
    return traj.low, traj.high
end

"y(t) of a solution, in place; `breaks`: where y may have a kink or a jump."
dense_output(sol, alg, breaks) = cubic(alg) ? Smooth(sol, breaks) : sol

"The solve of one interval between checkpoints, done again, did not end well."
struct ReplayFailed <: Exception
    code::String
end

"Solve the interval that `t` is in again; at a checkpoint, the one before it."
function replay!(traj::Trajectory{T}, t) where {T}
    (; field, times) = traj
    i = clamp(searchsortedfirst(times, t) - 1, 1, length(times) - 1)
    low, high = times[i], times[i + 1]
    prob = problem(
        traj.prob.f, traj.states[i], (low, high), traj.prob.p, traj.options,
        traj.prob.kwargs[:internalnorm],
    )
    traj.part, traj.low, traj.high = nothing, T(Inf), T(-Inf)  # the last one's memory goes first
    integ = begin_solve(prob, traj.alg, again(traj, low, high); dense = true)
    solve!(integ)
    ended = report(integ, field.sign)
    ok(ended) || throw(ReplayFailed(ended.code))
    traj.part = dense_output(integ.sol, traj.alg, traj.options.tstops)
    traj.low, traj.high = low, high
    field.peak = max(field.peak, held(integ.sol))
    return nothing
end

"How an interval is solved again: by the steps taken, or as the first time."
function again(traj::Trajectory{T}, low, high) where {T}
    isempty(traj.steps) && return traj.options
    (; reltol, abstol, maxiters) = traj.options
    inside = searchsortedfirst(traj.steps, low):searchsortedlast(traj.steps, high)
    tstops = traj.steps[inside]
    return Options{T}(; reltol, abstol, maxiters, adaptive = false, dt = high - low, tstops)
end

"Bytes of a dense solution."
held(sol) = sizeof(eltype(sol.u[1])) * length(sol.u[1]) * sum(length, sol.k; init = length(sol.u))
