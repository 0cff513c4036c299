# The forward solve.

"""
    Forward

A forward solve and what its backward pass needs.

- `states`: `n × m`, the outputs; NaN where the solve did not arrive
- `sol`: what SciML's adjoints read y(t) from, or `nothing` when nothing is kept
- `checkpoints`: times at which `sol` is exact; with a dense `sol`, its steps
- `last`: the last finite state at the end of a step
"""
struct Forward{T, F, P, S}
    field::F
    prob::P
    alg::Any
    options::Options{T}
    ts::Vector{T}
    states::Matrix{T}
    sol::S
    checkpoints::Vector{T}
    dense::Bool
    last::Vector{T}
    report::Report
end

"""
    forward(field, u0, ts, alg, options; keep, slots = 0) -> Forward

Integrate over `ts` (increasing). `keep` is

- `"dense"`: every step with its interpolant;
- `"outputs"`: the outputs alone;
- `"slots"`: at most `slots` states at steps taken, evenly spread over the steps.

`lead` > 0: errors of the first `lead` entries and of the others are controlled apart.
"""
function forward(
        field::Field{T}, u0, ts, alg, options; keep = "outputs", slots = 0, lead = 0,
    ) where {T}
    forget!(field)
    field.trouble.what = ""
    span = (ts[1], ts[end])
    norm = GroupNorm(lead > 0 ? [1:lead, (lead + 1):field.n] : [1:field.n])
    # these go with the problem, for the solves between checkpoints that SciML does again
    limits = (; options.maxiters, verbose = false, internalnorm = norm)
    prob = ODEProblem(odefunction(field, implicit(alg)), u0, span, zeros(T, field.np); limits...)
    if keep == "dense"
        return dense_forward(field, prob, ts, alg, options)
    end
    return thin_forward(field, prob, ts, alg, options, keep == "slots" ? slots : 0)
end

function dense_forward(field::Field{T}, prob, ts, alg, options) where {T}
    span = ts[end] - ts[1]
    integ = unhurried(field) do
        init(
            prob, alg; keywords(options, span)..., options.tstops,
            dense = true, save_everystep = true, save_start = true,
        )
    end
    ended = run!(integ, field.sign)
    sol, n = integ.sol, length(prob.u0)
    states = fill(T(NaN), n, length(ts))
    for (i, t) in enumerate(ts)
        t <= integ.t && copyto!(view(states, :, i), sol(t))
    end
    steps = length(sol.t)
    bytes = sizeof(T) * n * sum(length, sol.k; init = steps)
    ended = Report(;
        ended.code, ended.t, ended.dt, ended.top, ended.accepted, ended.rejected, bytes,
    )
    return Forward(field, prob, alg, options, ts, states, sol, copy(sol.t), true, last_state(integ), ended)
end

function thin_forward(field::Field{T}, prob, ts, alg, options, slots) where {T}
    span = ts[end] - ts[1]
    store = slots > 0 ? Slots{T}(slots, prob.u0, ts[1]) : nothing
    callback = store === nothing ? nothing : thinning(store)
    integ = unhurried(field) do
        init(
            prob, alg; keywords(options, span)..., options.tstops, callback,
            saveat = ts, dense = false, save_everystep = false, save_start = true,
        )
    end
    ended = run!(integ, field.sign)
    states = fill(T(NaN), length(prob.u0), length(ts))
    for (t, u) in zip(integ.sol.t, integ.sol.u)
        i = searchsortedfirst(ts, t)
        i <= length(ts) && ts[i] == t && copyto!(view(states, :, i), u)
    end
    times, kept = store === nothing ? (ts, collect(eachcol(states))) : finish!(store, integ)
    sol = skeleton(prob, alg, times, kept)
    bytes = sizeof(T) * length(prob.u0) * length(kept)
    ended = Report(;
        ended.code, ended.t, ended.dt, ended.top, ended.accepted, ended.rejected, bytes,
    )
    return Forward(field, prob, alg, options, ts, states, sol, copy(times), false, last_state(integ), ended)
end

last_state(integ) = copy(all(isfinite, integ.u) ? integ.u : integ.uprev)

"A solution that knows its states at `times` and nothing in between."
function skeleton(prob, alg, times, kept)
    states = [Vector(u) for u in kept]
    return SciMLBase.build_solution(
        prob, alg, times, states; dense = false, retcode = ReturnCode.Success,
    )
end

"""
    interpolate(fwd, t)

y(t) between the outputs: from the interpolant, or by solving again from the state before `t`.
"""
function interpolate(fwd::Forward{T}, t::T) where {T}
    fwd.dense && return fwd.sol(t)
    i = max(1, searchsortedlast(fwd.checkpoints, t))
    from = fwd.checkpoints[i]
    from == t && return fwd.sol.u[i]
    (; prob, alg, options) = fwd
    part = ODEProblem(prob.f, fwd.sol.u[i], (from, t), prob.p)
    integ = init(part, alg; keywords(options, t - from)..., dense = false, save_everystep = false)
    ended = run!(integ, fwd.field.sign)
    ok(ended) || throw(ErrorException("solving again from $from to $t ended with $(ended.code)"))
    return copy(integ.u)
end
