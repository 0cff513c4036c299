# Dense output through several steps, for methods whose own is a cubic.

const NODES = 4
# neighbours nearer than this, or further off, in lengths of the interval itself, are left out: what
# two states close together miss the solution by is magnified, and a long step says little
const NEAR, FAR = 0.3, 5.0
# states of a running solve that are held
const KEPT = 8

"""
    Hermite{T}(n)

The polynomial of degree 2m - 1 through `m <= NODES` states and their derivatives: an error of
h⁸ where the cubic through two has h⁴. `times[1:m]` and divided differences, with every time twice.
"""
mutable struct Hermite{T}
    const times::Vector{T}
    const differences::Matrix{T}
    m::Int
end
Hermite{T}(n) where {T} = Hermite{T}(zeros(T, NODES), zeros(T, n, 2 * NODES), 0)

"Begin with the interval from (a, u, du) to (b, v, dv)."
function begin!(h::Hermite, a, u, du, b, v, dv)
    h.m = 0
    add!(h, a, u, du)
    return add!(h, b, v, dv)
end

"One more node; its place among the others does not matter."
function add!(h::Hermite{T}, t, u, du) where {T}
    (; times, differences, m) = h
    j = 2m + 1
    for i in axes(differences, 1)
        # Newton's form: the value's difference, then the derivative's
        value, slope, weight, change = T(u[i]), T(du[i]), one(T), zero(T)
        for k in 1:(2m)
            gap = t - times[(k + 1) >> 1]
            value -= weight * differences[i, k]
            slope -= change * differences[i, k]
            change = change * gap + weight
            weight *= gap
        end
        first = value / weight
        differences[i, j] = first
        differences[i, j + 1] = (slope - change * first) / weight
    end
    times[m + 1] = t
    h.m = m + 1
    return h
end

function (h::Hermite{T})(y, t) where {T}
    (; times, differences, m) = h
    for i in axes(differences, 1)
        y[i] = differences[i, 2m]
    end
    for k in (2m - 1):-1:1
        gap = t - times[(k + 1) >> 1]
        for i in axes(differences, 1)
            y[i] = muladd(y[i], gap, differences[i, k])
        end
    end
    return nothing
end

"""
    Smooth(sol, breaks)

A dense solution read through several steps at once, none of them across a time in `breaks`, where
the solution has a jump or a kink.
"""
mutable struct Smooth{T, S}
    const sol::S
    const breaks::Vector{T}
    const hermite::Hermite{T}
    at::Int
end
Smooth(sol, breaks::Vector{T}) where {T} =
    Smooth(sol, sort(breaks), Hermite{T}(length(sol.u[1])), 0)

# the derivatives at step i's two ends
slopes(sol, i) = (sol.k[i + 1][1], sol.k[i + 1][2])

function (s::Smooth)(y, t)
    (; sol, hermite) = s
    times, steps = sol.t, length(sol.t) - 1
    # of an interval's end the step before, as SciML reads it; times may run backwards
    i = times[1] <= times[end] ? searchsortedfirst(times, t) - 1 :
        searchsortedfirst(times, t; rev = true) - 1
    i = clamp(i, 1, steps)
    i == s.at || gather!(s, i)
    hermite(y, t)
    return nothing
end

"The polynomial of step i: its ends, and the nearest states on either side."
function gather!(s::Smooth{T}, i) where {T}
    (; sol, hermite) = s
    times, states = sol.t, sol.u
    a, b = slopes(sol, i)
    begin!(hermite, times[i], states[i], a, times[i + 1], states[i + 1], b)
    h, left, right = abs(times[i + 1] - times[i]), i, i + 1
    while hermite.m < NODES
        back, ahead = beyond(s, left, -1, h), beyond(s, right, 1, h)
        nearer = back != 0 ? abs(times[back] - times[i]) : T(Inf)
        if ahead != 0 && abs(times[ahead] - times[i + 1]) < min(nearer, FAR * h)
            right = ahead
            add!(hermite, times[right], states[right], slopes(sol, right - 1)[2])
        elseif nearer < FAR * h
            left = back
            add!(hermite, times[left], states[left], slopes(sol, left)[1])
        else
            break
        end
    end
    s.at = i
    return nothing
end

"The next state after `from` in a direction that is far enough off and before a break; 0: none."
function beyond(s::Smooth, from, direction, h)
    times, j = s.sol.t, from + direction
    while checkbounds(Bool, times, j)
        blocked(s.breaks, times[from], times[j]) && return 0
        abs(times[j] - times[from]) >= NEAR * h && return j
        j += direction
    end
    return 0
end

"Whether a break lies between `from`, included, and `to`."
function blocked(breaks, from, to)
    i = from <= to ? searchsortedfirst(breaks, from) : searchsortedlast(breaks, from)
    checkbounds(Bool, breaks, i) || return false
    return from <= to ? breaks[i] < to || breaks[i] == from : breaks[i] > to || breaks[i] == from
end

"""
    Recent{T}(n)

The latest step of a solve that runs, read through it and the states before: these are forgotten
where the state was changed between two steps.
"""
mutable struct Recent{T}
    const hermite::Hermite{T}
    times::Vector{T}
    states::Vector{Vector{T}}
    slopes::Vector{Vector{T}}
end
Recent{T}(n) where {T} = Recent(Hermite{T}(n), T[], Vector{T}[], Vector{T}[])

function advance!(r::Recent, integ)
    if isempty(r.states) || r.states[end] != integ.uprev
        empty!(r.times), empty!(r.states), empty!(r.slopes)
        note!(r, integ.tprev, integ.uprev, integ.k[1])
    end
    note!(r, integ.t, integ.u, integ.k[2])
    (; hermite, times, states, slopes) = r
    last = length(times)
    begin!(
        hermite, times[last - 1], states[last - 1], slopes[last - 1],
        times[last], states[last], slopes[last],
    )
    h, near = abs(times[last] - times[last - 1]), times[last - 1]
    for i in (last - 2):-1:1
        hermite.m < NODES && abs(times[i] - near) >= NEAR * h || continue
        abs(times[i] - times[last - 1]) < FAR * h || break
        near = times[i]
        add!(hermite, near, states[i], slopes[i])
    end
    return nothing
end

function note!(r::Recent, t, u, du)
    if length(r.times) == KEPT
        popfirst!(r.times), popfirst!(r.states), popfirst!(r.slopes)
    end
    push!(r.times, t)
    push!(r.states, copy(u))
    push!(r.slopes, copy(du))
    return nothing
end

(r::Recent)(y, t) = r.hermite(y, t)
