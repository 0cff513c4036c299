# The forward solve.

"""
    Forward

A forward solve and what its backward pass needs.

- `states`: `n × m`, the outputs; NaN where the solve did not arrive
- `traj`: y(t), as far as it was kept
- `dense`: whether every step was
- `last`: the last finite state at the end of a step
- `tape`: its steps, where they are to be differentiated
- `step`: the step size that it would have gone on with, or 0
"""
struct Forward{T, V, M, F, Y}
    field::F
    ts::Vector{T}
    states::M
    traj::Y
    dense::Bool
    last::V
    report::Report
    tape::Union{Nothing, Tape{T}}
    step::Float64
end

"""
    forward(field, u0, ts, alg, options; keep, slots = 0, marks = [], first = nothing) -> Forward

Integrate over `ts` (increasing). `keep` is

- `"dense"`: every step with its interpolant;
- `"outputs"`: the outputs alone;
- `"slots"`: at most `slots` states at steps taken, evenly spread over the steps;
- `"marks"`: the states at the last steps up to the times in `marks` (increasing);
- `"stages"`: the states at which each step evaluated f, for `discrete`;
- `"steps"`: the state at each step, for the same.

`lead` > 0: errors of the first `lead` entries and of the others are controlled apart. `first`: f at the
start, if it is known.
"""
function forward(
        field::Field{T}, u0, ts, alg, options;
        keep = "outputs", slots = 0, marks = T[], lead = 0, first = nothing,
    ) where {T}
    return forward(field, u0, ts, alg, options, keep, slots, marks, lead, first)
end

function forward(field::Field, u0, ts, alg, options, keep, slots, marks, lead, first)
    forget!(field)
    first === nothing || know!(field, u0, ts[1], first)
    try
        return keeping(field, u0, ts, alg, options, keep, slots, marks, lead)
    finally
        forget!(field)
    end
end

function keeping(field::Field{T}, u0, ts, alg, options, keep, slots, marks, lead) where {T}
    field.trouble.what = ""
    span = (ts[1], ts[end])
    norm = lead > 0 ? GroupNorm(1:lead, (lead + 1):field.n) : GroupNorm(1:field.n)
    derivatives = odefunction(field, alg)
    prob = problem(derivatives, u0, span, blank(field, field.np), options, norm)
    if keep == "dense"
        return dense_forward(field, prob, ts, alg, options)
    end
    keep in ("stages", "steps") && return taped_forward(field, prob, ts, alg, options, keep)
    store = keep == "slots" ? Slots(slots, prob.u0, ts[1]) :
        keep == "marks" ? Marks(marks, prob.u0, ts[1]) : nothing
    return thin_forward(field, prob, ts, alg, options, store)
end

function taped_forward(field::Field{T}, prob, ts, alg, options, keep) where {T}
    field.tape = tape = Tape{T}(tableau(alg, T), prob.u0, keep == "stages", field.room)
    try
        return thin_forward(field, prob, ts, alg, options, tape)
    finally
        field.tape = nothing
    end
end

function dense_forward(field::Field{T}, prob, ts, alg, options) where {T}
    integ = unhurried(() -> begin_solve(prob, alg, options; dense = true), field)
    ended = run!(integ, field.sign)
    states = outputs(field, ts)
    traj = Trajectory(field, prob, alg, options, integ.sol)
    for (i, t) in enumerate(ts)
        t <= integ.t && traj(view(states, :, i), t)
    end
    ended = with_bytes(ended, held(integ.sol))
    return Forward(field, ts, states, traj, true, last_state(integ), ended, nothing, intended(integ))
end

function thin_forward(field::Field{T}, prob, ts, alg, options, store) where {T}
    own = store === nothing ? idle() : opaque(store)
    # where the dense output is a cubic, outputs are at the ends of steps
    stops = cubic(alg) ? unique(vcat(ts, options.tstops)) : options.tstops
    settings = with_stops(options, stops)
    integ = unhurried(() -> begin_solve(prob, alg, settings; own, outputs = ts), field)
    return thin_result(integ, field, prob, ts, alg, options, store)
end

"The rest of a thin solve, a call of its own: there an integrator's type is known, and nothing is looked up as it runs."
function thin_result(integ, field::Field{T}, prob, ts, alg, options, store) where {T}
    ended = run!(integ, field.sign)
    states = outputs(field, ts)
    collect!(states, ts, integ.sol.t, integ.sol.u)
    tape = store isa Tape ? store : nothing
    if tape !== nothing && !isempty(tape.ends)  # which says all
        times, kept, steps = T[], typeof(prob.u0)[], T[]
    elseif store === nothing || tape !== nothing
        times, kept, steps = ts, [states[:, i] for i in eachindex(ts)], T[]
    else
        finish!(store, integ)
        taken = options.adaptive && !implicit(alg)
        times, kept, steps = store.times, store.states, taken ? store.steps : T[]
    end
    traj = Trajectory(field, prob, alg, options, times, kept, steps)
    size = tape === nothing ? sizeof(T) * (field.n * length(kept) + length(steps)) : bytes(tape)
    ended = with_bytes(ended, size)
    return Forward(field, ts, states, traj, false, last_state(integ), ended, tape, intended(integ))
end

"The states at the output times among those that a solution has."
function collect!(states, ts, times, found)
    for (t, u) in zip(times, found)
        i = searchsortedfirst(ts, t)
        i <= length(ts) && ts[i] == t && copyto!(view(states, :, i), u)
    end
    return nothing
end

"No output has been reached yet."
outputs(field::Field{T}, ts) where {T} = fill!(blank(field, field.n, length(ts)), T(NaN))

last_state(integ) = copy(all(isfinite, integ.u) ? integ.u : integ.uprev)

"""
    interpolate(fwd, t)

y(t) between the outputs: from the interpolant, or by solving again from the state before `t`.
"""
function interpolate(fwd::Forward{T}, t::T) where {T}
    fwd.tape === nothing || isempty(fwd.tape.ends) || return read_off(fwd.tape, fwd.field, t)
    (; prob, alg, options, times, states) = fwd.traj
    if fwd.dense
        y = similar(prob.u0)
        fwd.traj(y, t)
        return y
    end
    i = max(1, searchsortedlast(times, t))
    times[i] == t && return states[i]
    part = problem(prob.f, states[i], (times[i], t), prob.p, options, prob.kwargs[:internalnorm])
    integ = begin_solve(part, alg, options)
    ended = run!(integ, fwd.field.sign)
    ok(ended) || throw(ReplayFailed(ended.code))
    return copy(integ.u)
end
