# Checkpoints by count: states at steps taken, thinned while the solve runs.

"""
    Slots{T}(limit, u0, t0)

Holds at most `limit` states, evenly spread over the accepted steps: when it is full, every other
one is dropped and from then on only every `stride`-th step is kept. The first is always held:
without it SciML extrapolates y before the first checkpoint, in silence.
"""
mutable struct Slots{T}
    limit::Int
    stride::Int
    seen::Int
    times::Vector{T}
    states::Vector{Vector{T}}
end
Slots{T}(limit, u0, t0) where {T} = Slots{T}(limit, 1, 0, T[t0], [Vector{T}(u0)])

(::Slots)(u, t, integ) = true

function (store::Slots)(integ)
    store.seen += 1
    if store.seen % store.stride == 0
        # one place is kept free for the end of the interval
        if length(store.times) >= store.limit - 1
            store.times, store.states = store.times[1:2:end], store.states[1:2:end]
            store.stride *= 2
        end
        if store.seen % store.stride == 0 && length(store.times) < store.limit - 1
            push!(store.times, integ.t)
            push!(store.states, copy(integ.u))
        end
    end
    return u_modified!(integ, false)
end

thinning(store) = DiscreteCallback(store, store; save_positions = (false, false))

"The times and states held, the end of the interval included."
function finish!(store, integ)
    if store.times[end] != integ.t
        push!(store.times, integ.t)
        push!(store.states, copy(integ.u))
    end
    return store.times, store.states
end
