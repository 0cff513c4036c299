# A right-hand side with its derivatives, as SciML asks for them.

"The last fused evaluation: SciML asks for vjp, vjp_p and f at the same point one after another."
mutable struct Memo{T, V}
    full::Bool
    t::T
    u::V
    λ::V
    dλ::V
    dg::V
    dy::V
end
function Memo{T}(place, n, np) where {T}
    state() = zeros_at(place, T, n)
    return Memo(false, zero(T), state(), state(), state(), zeros_at(place, T, np), state())
end

"The latest evaluation that was not finite: what it was, where, and at what time."
mutable struct Trouble{T}
    what::String
    t::T
    index::Int
    count::Int
end
Trouble{T}() where {T} = Trouble{T}("", zero(T), 0, 0)

"""
    Field{T}(; f!, vjp!, vjp_p!, fused!, jac!, jacs!, tgrad!, n, np, sign, deadline, place)

All callables are of type `Any`, so that every right-hand side has the same Julia type and the
solvers are compiled once: a call costs one dynamic dispatch.

- `f!(du, u, t)`
- `vjp!(dλ, λ, u, t)` writes (∂f/∂u)ᵀλ
- `vjp_p!(dg, λ, u, t)` writes (∂f/∂p)ᵀλ, `np` numbers
- `fused!(dλ, dg, dy, λ, u, t)` writes both, and f, from one evaluation
- `jac!(J, u, t)`, `jacs!(J, P, u, t)` (with ∂f/∂p), `tgrad!(dT, u, t)`: for implicit methods

`sign` is -1 when time was reversed to run forwards: s = -t, du/ds = -f. `deadline` is a reading of
`time()` after which an evaluation throws `OutOfTime`; the clock was `read` last, and is not at the next `idle`
evaluations. `peak`: bytes held by the backward solve.
`native`: compiled functions that stand for all of the above. `tape`: what sees each evaluation; `room`:
memory of the caller's for what it keeps.
`place`: where the arrays are. `explicit`: what SciML integrates by explicit methods, once it is made.
"""
Base.@kwdef mutable struct Field{T, V, P}
    f!::Any
    vjp!::Any = nothing
    vjp_p!::Any = nothing
    fused!::Any = nothing
    jac!::Any = nothing
    jacs!::Any = nothing
    tgrad!::Any = nothing
    n::Int
    np::Int
    sign::T = one(T)
    deadline::Float64 = Inf
    idle::Int = 0
    read::Float64 = 0.0
    peak::Int = 0
    native::Union{Nothing, NativeField{T}} = nothing
    tape::Union{Nothing, Tape{T}} = nothing
    room::Vector{T} = T[]
    const place::P
    const memo::Memo{T, V}
    trouble::Trouble{T} = Trouble{T}()
    explicit::Any = nothing
end

function Field{T}(; n, np, place = Host(), others...) where {T}
    memo = Memo{T}(place, n, np)
    return Field{T, typeof(memo.u), typeof(place)}(; n, np, place, memo, others...)
end

"Zeros where a field's arrays are."
blank(field::Field{T}, dims...) where {T} = zeros_at(field.place, T, dims...)

"The wall-clock limit was reached at time `t` of the solve."
struct OutOfTime <: Exception
    t::Float64
end

struct Rhs{F <: Field}
    field::F
end
struct Vjp{F <: Field}
    field::F
end
struct VjpP{F <: Field}
    field::F
end
struct Jac{F <: Field}
    field::F
end
struct Tgrad{F <: Field}
    field::F
end

# a compiled field is quick: its evaluations between two readings of the clock, which costs as much as a small f, and
# the seconds that they may take
const READINGS, BETWEEN = 16, 1.0e-3

function hurry(field, t)
    field.idle > 0 && (field.idle -= 1; return nothing)
    now = time()
    now > field.deadline && throw(OutOfTime(Float64(field.sign * t)))
    field.native === nothing && return nothing
    listen(field.native, now, Float64(field.sign * t))
    field.idle = now - field.read < BETWEEN ? READINGS - 1 : 0
    field.read = now
    return nothing
end

"A direction begins, which must end by `deadline`."
hurry!(field, deadline) = (field.deadline = deadline; field.idle = 0; nothing)

# a compiled field is called without a dispatch, and without allocating
call_f!(field, du, u, t) =
    (n = field.native; n === nothing ? field.f!(du, u, t) : f!(n, du, u, t); nothing)
call_vjp!(field, dλ, λ, u, t) =
    (n = field.native; n === nothing ? field.vjp!(dλ, λ, u, t) : vjp!(n, dλ, λ, u, t); nothing)
call_vjp_p!(field, dg, λ, u, t) =
    (n = field.native; n === nothing ? field.vjp_p!(dg, λ, u, t) : vjp_p!(n, dg, λ, u, t); nothing)
function call_fused!(field, m, t)
    n = field.native
    n === nothing ? field.fused!(m.dλ, m.dg, m.dy, m.λ, m.u, t) :
        fused!(n, m.dλ, m.dg, m.dy, m.λ, m.u, t)
    return nothing
end
call_jac!(field, J, u, t) =
    (n = field.native; n === nothing ? field.jac!(J, u, t) : jac!(n, J, u, t); nothing)
call_jacs!(field, J, P, u, t) =
    (n = field.native; n === nothing ? field.jacs!(J, P, u, t) : jacs!(n, J, P, u, t); nothing)
call_tgrad!(field, dT, u, t) =
    (n = field.native; n === nothing ? field.tgrad!(dT, u, t) : tgrad!(n, dT, u, t); nothing)
fuses(field) = field.native === nothing ? field.fused! !== nothing : field.native.fuses

"The clock stopped: for what takes a few evaluations, and leaves nothing to report on if cut off."
function unhurried(work, field)
    deadline, field.deadline = field.deadline, Inf
    try
        return work()
    finally
        hurry!(field, deadline)
    end
end

"Whether all of it is finite; finite numbers may have a sum that is not."
finite(x) = isfinite(sum(x)) || all(isfinite, x)

"Note an evaluation that is not finite; the solver goes on, and may recover with a smaller step."
function watch!(field, what, x, t)
    isfinite(sum(x)) && return nothing
    finite = isfinite.(Array(x))
    all(finite) && return nothing
    trouble = field.trouble
    trouble.what, trouble.t, trouble.index = what, field.sign * t, findfirst(!, finite)
    trouble.count = count(!, finite)
    return nothing
end

function (r::Rhs)(du, u, p, t)
    field, memo = r.field, r.field.memo
    note!(field.tape, u, t)
    if memo.full && memo.t == t && memo.u == u
        copyto!(du, memo.dy)
        return nothing
    end
    hurry(field, t)
    call_f!(field, du, u, field.sign * t)
    field.sign < 0 && (du .= .-du)
    watch!(field, "f", du, t)
    return nothing
end

"One fused evaluation at (t, u, λ), unless the last one was there."
function fuse!(field, λ, u, t)
    memo = field.memo
    memo.full && memo.t == t && memo.u == u && memo.λ == λ && return memo
    hurry(field, t)
    memo.full = false
    copyto!(memo.u, u)
    copyto!(memo.λ, λ)
    memo.t = t
    call_fused!(field, memo, field.sign * t)
    if field.sign < 0
        memo.dλ .= .-memo.dλ
        memo.dg .= .-memo.dg
        memo.dy .= .-memo.dy
    end
    watch!(field, "the vector-Jacobian product of f", memo.dλ, t)
    memo.full = true
    return memo
end

"Forget the last fused evaluation: the parameters may have changed."
forget!(field) = (field.memo.full = false; nothing)

"f(u, t) is known: it is not asked for."
function know!(field, u, t, first)
    (; memo) = field
    copyto!(memo.u, u)
    copyto!(memo.dy, first)
    field.sign < 0 && (memo.dy .= .-memo.dy)
    memo.t, memo.full = t, true
    return nothing
end

function (v::Vjp)(dλ, λ, u, p, t)
    field = v.field
    if fuses(field)
        copyto!(dλ, fuse!(field, λ, u, t).dλ)
        return nothing
    end
    hurry(field, t)
    call_vjp!(field, dλ, λ, u, field.sign * t)
    field.sign < 0 && (dλ .= .-dλ)
    watch!(field, "the vector-Jacobian product of f", dλ, t)
    return nothing
end

function (v::VjpP)(dg, λ, u, p, t)
    field = v.field
    if fuses(field)
        copyto!(dg, fuse!(field, λ, u, t).dg)
        return nothing
    end
    hurry(field, t)
    call_vjp_p!(field, dg, λ, u, field.sign * t)
    field.sign < 0 && (dg .= .-dg)
    return nothing
end

function (j::Jac)(J, u, p, t)
    field = j.field
    hurry(field, t)
    call_jac!(field, J, u, field.sign * t)
    field.sign < 0 && (J .= .-J)
    return nothing
end

# d/ds of -f(-s, u) is ∂f/∂t
(d::Tgrad)(dT, u, p, t) = (call_tgrad!(d.field, dT, u, d.field.sign * t); nothing)

"""
What SciML integrates: vjps for its adjoints, Jacobians for implicit methods. That of explicit ones is made once: SciML
looks up a function's methods whenever it takes one.
"""
function odefunction(field::Field{T}, alg) where {T}
    vjp, vjp_p = Vjp(field), VjpP(field)
    if !implicit(alg)
        field.explicit === nothing && (field.explicit = odefunction(T, Rhs(field); vjp, vjp_p))
        return field.explicit
    end
    f! = retimed(Rhs(field), alg)
    return odefunction(T, f!; vjp, vjp_p, jac = Jac(field), tgrad = Tgrad(field))
end
