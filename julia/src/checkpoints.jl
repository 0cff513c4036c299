# Checkpoints by count: states at steps taken, thinned while the solve runs.

"""
    Slots{T}(limit, u0, t0)

Holds at most `limit` states, evenly spread over the accepted steps: when it is full, every other
one is dropped and from then on only every `stride`-th step is kept. The first is always held.
`steps`: the times of all.
"""
mutable struct Slots{T}
    limit::Int
    stride::Int
    times::Vector{T}
    states::Vector{Vector{T}}
    steps::Vector{T}
end
Slots{T}(limit, u0, t0) where {T} = Slots{T}(limit, 1, T[t0], [Vector{T}(u0)], T[])

(::Slots)(u, t, integ) = true

function (store::Slots)(integ)
    push!(store.steps, integ.t)
    seen = length(store.steps)
    if seen % store.stride == 0
        # one place is kept free for the end of the interval
        if length(store.times) >= store.limit - 1
            store.times, store.states = store.times[1:2:end], store.states[1:2:end]
            store.stride *= 2
        end
        if seen % store.stride == 0 && length(store.times) < store.limit - 1
            hold!(store, integ)
        end
    end
    return u_modified!(integ, false)
end

function hold!(store, integ)
    push!(store.times, integ.t)
    push!(store.states, copy(integ.u))
    return nothing
end

"The end of the interval is held as well."
finish!(store, integ) = store.times[end] == integ.t || hold!(store, integ)
