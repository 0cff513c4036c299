# What crosses to a caller in another language: addresses, numbers and names, never arrays.

"""
    Addressed(pointer, place)

A C function `int (a1, ..., a5, t)` of the addresses of up to five arrays and a time; 1 means that
all went well. Views of the arrays are the caller's to cache by address: SciML hands over few
buffers, again and again. On a device both sides wait: what is pending on the arrays is done when the
function is called, and when it returns.
"""
struct Addressed{P}
    pointer::Ptr{Cvoid}
    place::P
end

(a::Addressed)(x, y, t) = GC.@preserve x y cross(a, t, address(x), address(y))
(a::Addressed)(x, y, z, t) =
    GC.@preserve x y z cross(a, t, address(x), address(y), address(z))
(a::Addressed)(v, w, x, y, z, t) = GC.@preserve v w x y z cross(
    a, t, address(v), address(w), address(x), address(y), address(z),
)

function cross(a::Addressed, t, v, w, x = 0, y = 0, z = 0)
    settle(a.place)
    went = ccall(
        a.pointer, Cint, (Int64, Int64, Int64, Int64, Int64, Float64), v, w, x, y, z, Float64(t),
    )
    went == 1 || throw(CallFailed())
    return nothing
end

function address(x::AbstractArray)
    stride(x, 1) == 1 || throw(ArgumentError("an array of stride $(stride(x, 1)) crossed over"))
    return Int(UInt(pointer(x)))
end

const TYPES = Dict("float32" => Float32, "float64" => Float64)

"A copy of numbers at an address."
read_vector(T, at, n, place = Host()) = copy(wrap(place, T, at, n))
read_matrix(T, at, n, m, place = Host()) = copy(wrap(place, T, at, n, m))

"Write an array to an address."
write_to(at, x::AbstractArray{T}, place = Host()) where {T} =
    (copyto!(wrap(place, T, at, length(x)), x); nothing)

"Write the parts of a vector, one after another, to `pieces` addresses; these and their lengths are at `at`."
function scatter_to(at, pieces, x::AbstractVector{T}, place) where {T}
    done = 0
    for i in 1:pieces
        part, count = unsafe_load(Ptr{Int}(at), 2i - 1), unsafe_load(Ptr{Int}(at), 2i)
        copyto!(wrap(place, T, part, count), 1, x, done + 1, count)
        done += count
    end
    return nothing
end

# in this process's memory there is nothing to wrap
write_to(at, x::Array{T}, ::Host) where {T} =
    (GC.@preserve x unsafe_copyto!(Ptr{T}(at), pointer(x), length(x)); nothing)
function scatter_to(at, pieces, x::Vector{T}, ::Host) where {T}
    done = 0
    GC.@preserve x for i in 1:pieces
        part, count = unsafe_load(Ptr{Int}(at), 2i - 1), unsafe_load(Ptr{Int}(at), 2i)
        unsafe_copyto!(Ptr{T}(part), pointer(x, done + 1), count)
        done += count
    end
    return nothing
end

"The first whole numbers at an address."
numbers_at(at, count::Val) = ntuple(i -> unsafe_load(Ptr{Int}(at), i), count)

"A place by the name of its kind."
place_of(kind, index) = place(Val(Symbol(String(kind))), index)

"A `Field` whose callables are C functions at addresses; 0 for one that is not there."
function field_of(place, type, n, np, sign, f, vjp, vjp_p, fused, jac, jacs, tgrad)
    T = TYPES[String(type)]
    at(call) = call == 0 ? nothing : Addressed(Ptr{Cvoid}(call), place)
    return inside(place) do
        Field{T}(;
            f! = at(f), vjp! = at(vjp), vjp_p! = at(vjp_p), fused! = at(fused), jac! = at(jac),
            jacs! = at(jacs), tgrad! = at(tgrad), n, np, sign = T(sign), place,
        )
    end
end

"""
A `Field` of compiled functions; ten numbers at an address: n, np, the sign, the addresses of f, its vjps, that
of their memory's, and `poll`'s.
"""
function native_of(type, where, fuses)
    T = TYPES[String(type)]
    n, np, sign, f, vjp, vjp_p, fused, vjp_t, table, poll = numbers_at(where, Val(10))
    at(x) = Ptr{Cvoid}(x)
    native = NativeField{T}(
        at(f), at(vjp), at(vjp_p), at(fused), at(vjp_t), Ptr{Int}(table), fuses, at(poll), n, np,
    )
    return Field{T}(; f! = nothing, n, np, sign = T(sign), native)
end

"""
`Options` from `count` numbers at an address: thirteen, and times to stop at in the field's own time. Where the
first is NaN, a relative and an absolute tolerance for each entry of the state follow.
"""
function options_of(field::Field{T}, at, count) where {T}
    x = read_vector(Float64, at, count)
    reltol::Tolerance{T}, abstol::Tolerance{T} = T(x[1]), T(x[2])
    if isnan(x[1])
        abstol = copyto!(blank(field, field.n), T.(x[(end - field.n + 1):end]))
        reltol = copyto!(blank(field, field.n), T.(x[(end - 2field.n + 1):(end - field.n)]))
        resize!(x, count - 2field.n)
    end
    return Options{T}(;
        reltol, abstol, adaptive = x[3] == 1, dt = x[4], dtmin = x[5], dtmax = x[6],
        maxiters = Int(x[7]), control = Controller(x[8], x[9], x[10], x[11], x[12], x[13]),
        tstops = T.(x[14:end]),
    )
end

# Bytes between two collections, and solves: Julia's own schedule lets tens of megabytes of a training's
# garbage pile up, and each collection makes old what is alive then, which waits for a full one of half a
# second.
const GARBAGE, SOLVES = 8 * 2^20, 20
const SWEPT, SEEN = Ref(0), Ref(0)

"""
Sweep up after many solves, before the next: what they held was young, and has died young. The caller's
language calls from here, so finalizers of its objects may run.
"""
function tidy()
    made = Base.gc_bytes()
    last, SEEN[] = made - SEEN[], made
    made - SWEPT[] > max(GARBAGE, SOLVES * last) || return nothing
    GC.gc(false)
    SWEPT[] = made
    return nothing
end

"""
What is the same in every forward solve of a plan, made once: `ready_at(field, name, keep, at)`, of a solver's and a
store's name and the numbers of `forward_at`.
"""
mutable struct Ready{T}
    const algorithm::Any
    const options::Options{T}
    const times::Vector{T}
    const keep::String
    const slots::Int
    const marks::Vector{T}
    const lead::Int
end

function ready_at(field::Field{T}, name, keep, at) where {T}
    _, _, ts, m, settings, count, slots, marks, marked, _, lead = numbers_at(at, Val(11))
    return inside(field.place) do
        Ready{T}(
            algorithm(name), options_of(field, settings, count), T.(read_vector(Float64, ts, m)), String(keep),
            slots, T.(read_vector(Float64, marks, marked)), lead,
        )
    end
end

"""
A forward solve for a caller with addresses. Of a native field also the state it began at and what f was there, by
which a backward solve sees whether it still is.
"""
mutable struct Held{F, V}
    const fwd::F
    const start::V
    const began::Union{Nothing, V}
end

"""
    forward_at(field, ready, at, deadline)
    forward_at(field, name, keep, at, deadline)

`forward` for a caller with addresses: `at` is that of fifteen numbers, in the order below; those of them that a
`Ready` has are read when that is made. Fills `ys` and `told`; `room` numbers at `spare`, which must live as long
as what is returned, may be used for what is kept.

Returns: a `Held`; nothing if `first`, what the caller found f to be at the start, is not what a native
field has there; false if a state, without sensitivities, is not finite.
"""
forward_at(field::Field, name, keep, at, deadline) =
    forward_at(field, ready_at(field, name, keep, at), at, deadline)

function forward_at(field::Field{T}, ready::Ready{T}, at, deadline) where {T}
    u0, first, _, _, _, _, _, _, _, ys, _, told, prepare, spare, room = numbers_at(at, Val(15))
    (; place) = field
    tidy()
    hurry!(field, deadline)
    counted!(field.native)  # of a solve that was stopped
    field.room = room == 0 ? T[] : wrap(Host(), T, spare, room)
    held = inside(place) do
        start = read_vector(T, u0, field.n, place)
        ready.lead > 0 || finite(start) || return false
        known = first == 0 ? nothing : wrap(place, T, first, field.n)
        began = value(field.native, prepare, start, field.sign * ready.times[1])
        agree(known, began) || return nothing
        return Base.inferencebarrier(solved)(field, ready, start, known, began, ys)
    end
    held isa Held && tell!(told, held.fwd.report, field)
    return held
end

function solved(field, ready, start, known, began, ys)
    (; times, algorithm, options, keep, slots, marks, lead) = ready
    fwd = forward(field, start, times, algorithm, options, keep, slots, marks, lead, known)
    write_to(ys, fwd.states, field.place)
    return Held(fwd, start, began)
end

"""
How a forward solve that did not end well ended, and what was not finite, in words; its last finite state is written
to an address.
"""
function words(held::Held, last)
    (; fwd) = held
    inside(() -> write_to(last, fwd.last, fwd.field.place), fwd.field.place)
    return fwd.report.code, fwd.field.trouble.what
end

"Whether a native field is not what it was in the forward solve."
function changed(held::Held, prepare)
    (; fwd, start, began) = held
    (; field) = fwd
    began === nothing && return false
    return differ(value(field.native, prepare, start, field.sign * fwd.ts[1]), began)
end

"""
What is the same in every backward solve of a plan, made once: `pulling_at(field, adjoint, name, at, resync, seminorm,
quad_reltol, quad_abstol)`, of the numbers of `gradient_at`.
"""
mutable struct Pulling{T}
    const adjoint::String
    const algorithm::Any
    const options::Options{T}
    const resync::Bool
    const seminorm::Bool
    const quad_reltol::Float64
    const quad_abstol::Float64
end

function pulling_at(field::Field{T}, adjoint, name, at, more...) where {T}
    _, settings, count = numbers_at(at, Val(3))
    options = inside(() -> options_of(field, settings, count), field.place)
    return Pulling{T}(String(adjoint), algorithm(name), options, more...)
end

"""
    gradient_at(held, pulling, at, deadline)
    gradient_at(held, adjoint, name, at, resync, seminorm, quad_reltol, quad_abstol, deadline)

`gradient` for a caller with addresses, of nine numbers: those of `g`, the settings and their number; of what is
filled: `λ` (or 0), λ + ∂L/∂u(t0), `p` in `pieces` parts (each an address and how many numbers) and `told`; and a
native field's `prepare`.

Returns: nothing, or `words` where it did not end well: `Cotangent` where `g` is not finite, and `Changed` where a
native field is not what it was, before any step.
"""
function gradient_at(
        held::Held, adjoint, name, at, resync, seminorm, quad_reltol, quad_abstol, deadline,
    )
    settings = resync, seminorm, quad_reltol, quad_abstol
    return gradient_at(held, pulling_at(held.fwd.field, adjoint, name, at, settings...), at, deadline)
end

function gradient_at(held::Held, pulling::Pulling, at, deadline)
    (; fwd) = held
    g, _, _, λ, y, p, pieces, told, prepare = numbers_at(at, Val(9))
    field, place = fwd.field, fwd.field.place
    T = eltype(fwd.ts)
    hurry!(field, deadline)
    counted!(field.native)
    loss = inside(() -> read_matrix(T, g, field.n, length(fwd.ts), place), place)
    finite(loss) || return "Cotangent", ""
    changed(held, prepare) && return "Changed", ""
    found, sound = inside(place) do
        (; adjoint, algorithm, options, resync, seminorm, quad_reltol, quad_abstol) = pulling
        found = Base.inferencebarrier(gradient)(
            fwd, adjoint, loss, algorithm, options, resync, seminorm, quad_reltol, quad_abstol,
        )::Gradient{typeof(field.memo.u)}
        λ == 0 || write_to(λ, found.λ, place)
        found.λ .+= view(loss, :, 1)
        write_to(y, found.λ, place)
        scatter_to(p, pieces, found.p, place)
        return found, isfinite(sum(found.λ)) && isfinite(sum(found.p))
    end
    tell!(told, found.report, field, found.estimate, field.peak, sound, found.drift)
    return ok(found.report) ? nothing : (found.report.code, field.trouble.what)
end

"What there is to say of one direction, as numbers at an address."
function tell!(at, r::Report, field, estimate = 0.0, peak = 0, finite = true, drift = ())
    trouble, counts = field.trouble, counted!(field.native)
    numbers = map(
        Float64, (
            ok(r), r.t, r.dt, r.top, r.accepted, r.rejected, r.bytes, r.forced, r.worst,
            trouble.t, trouble.index, trouble.count, counts..., estimate, peak, finite, length(drift),
        ),
    )
    for (i, x) in enumerate(numbers)
        unsafe_store!(Ptr{Float64}(at), x, i)
    end
    for (i, x) in enumerate(drift)
        unsafe_store!(Ptr{Float64}(at), Float64(x), length(numbers) + i)
    end
    return nothing
end

"`compile` for numbers at addresses; names are separated by spaces."
compile_at(type, numbers, count, constants, many, names) = Int(
    compile(
        TYPES[String(type)], read_vector(Int, numbers, count),
        read_vector(Float64, constants, many), Symbol.(split(String(names))),
    ),
)

"y(t), written to an address."
function interpolate_at(held::Held, t, at, deadline)
    (; fwd) = held
    (; place) = fwd.field
    hurry!(fwd.field, deadline)
    inside(() -> write_to(at, interpolate(fwd, eltype(fwd.ts)(t)), place), place)
    return nothing
end

"Names and versions of the packages a result depends on."
function versions()
    found = [("julia", string(VERSION)), ("PyODE", string(pkgversion(@__MODULE__)))]
    for m in (SciMLSensitivity, SciMLBase)
        push!(found, (string(nameof(m)), string(pkgversion(m))))
    end
    return found
end
