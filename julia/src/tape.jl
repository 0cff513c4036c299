# What the exact gradient of a solve's steps needs of them.

"""
    Tape{T}(tableau, n, whole)

The accepted steps of a forward solve. `whole`: with the states at which f was evaluated, stage by
stage; otherwise with the state each step began at, and its stages are computed again.

It sees every evaluation (`note!`); at the end of an accepted step the latest of them are the step's.

States are written into `room`, the caller's memory, as long as it lasts: what is large and outlives a
solve is not Julia's garbage then, whose sweeping would cost more than a small solve.
"""
mutable struct Tape{T}
    const tableau::Tableau{T}
    const whole::Bool
    const ring::Matrix{T}
    const when::Vector{T}
    at::Int
    const starts::Vector{T}
    const ends::Vector{T}
    const lengths::Vector{T}
    const points::Vector{Matrix{T}}
    const room::Vector{T}
    used::Int
end

function Tape{T}(tableau, u0, whole, room = T[]) where {T}
    kept = whole ? tableau.calls : 1
    first = reshape(Vector{T}(u0), :, 1)
    return Tape{T}(
        tableau, whole, zeros(T, length(u0), kept), zeros(T, tableau.calls), 0, T[], T[], T[], [first],
        room, 0,
    )
end

"Memory for the states of one more step."
function leaf!(tape::Tape{T}) where {T}
    (; ring, room, used) = tape
    used + length(ring) > length(room) && return similar(ring)
    tape.used += length(ring)
    return unsafe_wrap(Matrix{T}, pointer(room, used + 1), size(ring))
end

bytes(tape::Tape{T}) where {T} = sizeof(T) * (3 * length(tape.ends) + sum(length, tape.points))

"The evaluation of f at (t, u) that is being made."
function note!(tape::Tape, u, t)
    tape.at = tape.at == length(tape.when) ? 1 : tape.at + 1
    tape.when[tape.at] = t
    tape.whole && copyto!(view(tape.ring, :, tape.at), u)
    return nothing
end
note!(::Nothing, u, t) = nothing

(::Tape)(u, t, integ) = true

"""
The evaluations noted are not those of the step that ended: OrdinaryDiffEq evaluates f in another
order than when its tableau was read, or says a wrong step size (as in steps that a stop cuts short,
since OrdinaryDiffEqCore 3.11 to 3.16).
"""
struct StepNotSeen <: Exception
    t::Float64
end

function (tape::Tape{T})(integ) where {T}
    (; tableau, when, at) = tape
    t, h, calls = integ.tprev, integ.dt, length(when)
    slack = 16 * eps(T) * max(abs(t), abs(integ.t), abs(h))
    for q in 1:calls
        seen, meant = when[mod1(at + q, calls)], t + tableau.c[stage(tableau, q)] * h
        abs(seen - meant) <= slack || throw(StepNotSeen(Float64(t)))
    end
    push!(tape.starts, t)
    push!(tape.ends, integ.t)
    push!(tape.lengths, h)
    points = leaf!(tape)
    if tape.whole
        for q in 1:calls
            copyto!(view(points, :, q), view(tape.ring, :, mod1(at + q, calls)))
        end
    else
        copyto!(points, integ.u)
    end
    push!(tape.points, points)
    return u_modified!(integ, false)
end

"The state that step `n` began at; of a chained method also that the last one ended at."
function start(tape::Tape, n)
    (; points, whole, tableau) = tape
    whole && !tableau.chained && return view(points[n + 1], :, 1)
    return view(points[n], :, size(points[n], 2))
end

"""
The states at which step `n` evaluated f, from the one it began at, and the derivatives there that
they depend on, or all. Without `dense`, those are left out that only the dense output depends on.
"""
function replay!(states, k, point, field, tape::Tape, n, dense; all = false)
    (; a, b, c, chained) = tape.tableau
    last = dense || chained ? length(b) : findlast(!iszero, b)
    u, h, used = start(tape, n), tape.lengths[n], chained ? last - 1 : last
    for j in 1:last
        y = view(states, :, j)
        if chained && j == last
            copyto!(y, start(tape, n + 1))
        else
            copyto!(y, u)
            for m in 1:(j - 1)
                a[j, m] == 0 || add!(y, h * a[j, m], view(k, :, m))
            end
        end
        all || any(!iszero, view(a, (j + 1):used, j)) || continue
        t = tape.starts[n] + c[j] * h
        hurry(field, t)
        copyto!(point, y)  # a buffer of one address
        dy = view(k, :, j)
        call_f!(field, dy, point, field.sign * t)
        field.sign < 0 && (dy .= .-dy)
    end
    return nothing
end

"y(t) as the solve's own dense output has it."
function read_off(tape::Tape{T}, field, t) where {T}
    n = clamp(searchsortedlast(tape.starts, t), 1, length(tape.starts))
    s, y = stages(tape.tableau), Vector(start(tape, n))
    k, w, h = zeros(T, length(y), s), zeros(T, s), tape.lengths[n]
    replay!(similar(k), k, similar(y), field, tape, n, true; all = true)
    weights!(w, tape.tableau, (t - tape.starts[n]) / h)
    for j in 1:s
        add!(y, h * w[j], view(k, :, j))
    end
    return y
end
