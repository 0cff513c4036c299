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
    forward_at(field, name, keep, at, deadline)

`forward` for a caller with addresses: `at` is that of sixteen numbers, in the order below. Fills
`ys`, `last` and `told`; `room` numbers at `spare`, which must live as long as what is returned, may be
used for what is kept.

Returns: the `Forward`; nothing if `first`, what the caller found f to be at the start, is not what a native
field has there.
"""
function forward_at(field::Field{T}, name, keep, at, deadline) where {T}
    u0, first, ts, m, settings, count, slots, marks, marked, ys, lead, last, told, prepare, spare, room =
        numbers_at(at, Val(16))
    (; place) = field
    tidy()
    field.deadline = deadline
    counted!(field.native)  # of a solve that was stopped
    field.room = room == 0 ? T[] : wrap(Host(), T, spare, room)
    times = T.(read_vector(Float64, ts, m))
    fwd = inside(place) do
        start = read_vector(T, u0, field.n, place)
        known = first == 0 ? nothing : wrap(place, T, first, field.n)
        fresh(field.native, prepare, start, field.sign * times[1], known) || return nothing
        fwd = Base.inferencebarrier(forward)(
            field, start, times, algorithm(name), options_of(field, settings, count);
            keep = String(keep), slots, lead, marks = T.(read_vector(Float64, marks, marked)),
            first = known,
        )
        write_to(ys, fwd.states, place)
        write_to(last, fwd.last, place)
        return fwd
    end
    fwd === nothing || tell!(told, fwd.report, field)
    return fwd
end

"How a forward solve that did not end well ended, and what was not finite, in words."
words(fwd::Forward) = (fwd.report.code, fwd.field.trouble.what)

"""
    gradient_at(fwd, adjoint, name, at, resync, seminorm, quad_reltol, quad_abstol, deadline)

`gradient` for a caller with addresses, of six numbers: those of `g`, the settings and their number, and what is
filled: `λ`, `p` and `told`.

Returns: nothing, or `words` where it did not end well.
"""
function gradient_at(
        fwd::Forward{T}, adjoint, name, at, resync, seminorm, quad_reltol, quad_abstol, deadline,
    ) where {T}
    field, place = fwd.field, fwd.field.place
    g, settings, count, λ, p, told = numbers_at(at, Val(6))
    field.deadline = deadline
    counted!(field.native)
    found = inside(place) do
        loss = read_matrix(T, g, field.n, length(fwd.ts), place)
        found = Base.inferencebarrier(gradient)(
            fwd, String(adjoint), loss, algorithm(name), options_of(field, settings, count);
            resync, seminorm, quad_reltol, quad_abstol,
        )
        write_to(λ, found.λ, place)
        write_to(p, found.p, place)
        return found
    end
    tell!(told, found.report, field, found.estimate, field.peak, found.drift)
    return ok(found.report) ? nothing : (found.report.code, field.trouble.what)
end

"What there is to say of one direction, as numbers at an address."
function tell!(at, r::Report, field, estimate = 0.0, peak = 0, drift = ())
    trouble, counts = field.trouble, counted!(field.native)
    numbers = (
        ok(r), r.t, r.dt, r.top, r.accepted, r.rejected, r.bytes, r.forced, r.worst,
        trouble.t, trouble.index, trouble.count, counts..., estimate, peak, length(drift),
    )
    for (i, x) in enumerate(numbers)
        unsafe_store!(Ptr{Float64}(at), Float64(x), i)
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
function interpolate_at(fwd::Forward{T}, t, at, deadline) where {T}
    (; place) = fwd.field
    fwd.field.deadline = deadline
    inside(() -> write_to(at, interpolate(fwd, T(t)), place), place)
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
