# Checkpoints: states at steps taken, by count (thinned while the solve runs) or by times.

"""
    Slots(limit, u0, t0)

Holds at most `limit` states, evenly spread over the accepted steps: when it is full, every other
one is dropped and from then on only every `stride`-th step is kept. The first is always held.
`steps`: the times of all.
"""
mutable struct Slots{T, V}
    limit::Int
    stride::Int
    times::Vector{T}
    states::Vector{V}
    steps::Vector{T}
end
Slots(limit, u0, t0) = Slots(limit, 1, [t0], [copy(u0)], typeof(t0)[])

(::Slots)(u, t, integ) = true

"""
    Marks(marks, u0, t0)

Holds the states at the last steps up to given times, in increasing order. `steps`: the times of all.
"""
struct Marks{T, V}
    marks::Vector{T}
    times::Vector{T}
    states::Vector{V}
    steps::Vector{T}
end
Marks(marks, u0, t0) = Marks(copy(marks), [t0], [copy(u0)], typeof(t0)[])

(::Marks)(u, t, integ) = true

function (store::Marks)(integ)
    push!(store.steps, integ.t)
    while !isempty(store.marks) && store.marks[1] <= integ.t
        if store.marks[1] == integ.t
            hold!(store, integ.t, integ.u)
        else
            hold!(store, integ.tprev, integ.uprev)
        end
        popfirst!(store.marks)
    end
    return u_modified!(integ, false)
end

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
            hold!(store, integ.t, integ.u)
        end
    end
    return u_modified!(integ, false)
end

function hold!(store, t, u)
    store.times[end] < t || return nothing
    push!(store.times, t)
    push!(store.states, copy(u))
    return nothing
end

"The end of the interval is held as well."
finish!(store, integ) = hold!(store, integ.t, integ.u)
