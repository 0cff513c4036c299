# A native field: a program compiled to C functions of addresses, with its memory.

const ARGUMENTS = 5  # arrays of a call; numbers above are the table's

"""
    compile(T, numbers, constants, names)

The address of a C function `(table, x1, ..., x5, t)` that runs one program. Every program has the
same Julia type: an address; what solves with it is compiled once.
"""
function compile(T, numbers, constants, names)
    name = gensym(:native)
    home = Module(:PyODENative)
    Core.eval(home, definition(name, T, kernels(numbers, constants, names)))
    types = Expr(:tuple, Ptr{Int}, fill(Ptr{T}, ARGUMENTS)..., Float64)
    pointer = Expr(
        :macrocall, GlobalRef(Base, Symbol("@cfunction")), LineNumberNode(0), name, Cvoid, types,
    )
    return Core.eval(home, pointer)::Ptr{Cvoid}
end

"The expression of a program's function."
function definition(name, T, program)
    used = sort!(unique(reduce(vcat, buffers.(program); init = Int[])))
    loads = [
        :($(memory(b)) = $(unsafe_load)(Ptr{Ptr{$T}}(table), $(b - ARGUMENTS))) for
            b in used if b > ARGUMENTS
    ]
    arrays = [:($(memory(b))::Ptr{$T}) for b in 1:ARGUMENTS]
    body = Expr(:block, loads..., (emit(k, T) for k in program)..., :(return nothing))
    return Expr(:function, :($name(table::Ptr{Int}, $(arrays...), time::Float64)), quote
        t = $T(time)
        $body
    end)
end

buffers(k::Loop) = [k.out.buffer; buffers(k.term); buffers(k.post)]
buffers(k::Product) = [k.a.buffer, k.b.buffer, k.c.buffer]
buffers(k::Move) = [k.x.buffer, k.out.buffer]
buffers(a::Access) = [a.buffer]
buffers(c::Call) = reduce(vcat, buffers.(c.args); init = Int[])
buffers(::Term) = Int[]

"""
    NativeField{T}(f, vjp, vjp_p, fused, vjp_t, table, fuses, poll, n, np)

A field's compiled functions, by address; null for one that is never asked for. `table`: the address
of their memory's, which is the caller's. Evaluations are counted here. `poll(t)`, a C function, is
called now and then, so that the caller can stop the solve: it returns 1 to go on.
"""
mutable struct NativeField{T}
    const f::Ptr{Cvoid}
    const vjp::Ptr{Cvoid}
    const vjp_p::Ptr{Cvoid}
    const fused::Ptr{Cvoid}
    const vjp_t::Ptr{Cvoid}
    const table::Ptr{Int}
    const fuses::Bool
    const poll::Ptr{Cvoid}
    const unit::Vector{T}
    const row::Vector{T}
    const param_row::Vector{T}
    polled::Float64
    nfe::Int
    nvjp::Int
    njac::Int
    plain::Int
end

NativeField{T}(f, vjp, vjp_p, fused, vjp_t, table, fuses, poll, n, np) where {T} = NativeField{T}(
    f, vjp, vjp_p, fused, vjp_t, table, fuses, poll, zeros(T, n), zeros(T, n), zeros(T, np), time(),
    0, 0, 0, 0,
)

"""
f(u, t) of a native field; what depends on no state is computed anew first, by `prepare`, another function of the
table's. Nothing for a field that is called back.
"""
function value(native::NativeField{T}, prepare, u, t) where {T}
    run!(native, Ptr{Cvoid}(prepare), t, Ptr{T}(0), Ptr{T}(0))
    mine = similar(u)
    GC.@preserve u mine run!(native, native.f, t, pointer(mine), pointer(u))
    return mine
end
value(::Nothing, prepare, u, t) = nothing

"Whether f is what it is `known` to be, to half the digits, which is nobody's to say where that is not finite."
function agree(known, mine::Vector{T}) where {T}
    size, off = zero(T), zero(T)
    for i in eachindex(known, mine)
        size, off = max(size, abs(known[i])), max(off, abs(mine[i] - known[i]))
    end
    return off <= sqrt(eps(T)) * size + 100 * eps(T) || !(size < T(Inf))
end
agree(::Nothing, ::Vector) = true
agree(known, ::Nothing) = true

const SAME = 1.0e4  # roundings by which two evaluations of one f may differ, as in pyode/_torch/trajectory.py

"Whether two evaluations at one point cannot be of one f; false for NaN."
function differ(now::Vector{T}, before::Vector{T}) where {T}
    now == before && return false
    size, off = zero(T), zero(T)
    for i in eachindex(now, before)
        size, off = max(size, abs(now[i]), abs(before[i])), max(off, abs(now[i] - before[i]))
    end
    return off > T(SAME) * eps(T) * size
end

"The counts, from here on anew."
function counted!(native::NativeField)
    found = (native.nfe, native.nvjp, native.njac, native.plain)
    native.nfe = native.nvjp = native.njac = native.plain = 0
    return found
end
counted!(::Nothing) = (0, 0, 0, 0)

"The caller's function failed; the caller knows why."
struct CallFailed <: Exception end

const PATIENCE = 0.05  # seconds between two polls

function listen(native::NativeField, now, t)
    now > native.polled + PATIENCE && native.poll != C_NULL || return nothing
    native.polled = now
    ccall(native.poll, Cint, (Float64,), t) == 1 || throw(CallFailed())
    return nothing
end

function run!(native::NativeField{T}, call, t, v, w, x = Ptr{T}(0), y = Ptr{T}(0), z = Ptr{T}(0)) where {T}
    ccall(
        call, Cvoid,
        (Ptr{Int}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Float64),
        native.table, v, w, x, y, z, Float64(t),
    )
    return nothing
end

function place(x::AbstractArray)
    stride(x, 1) == 1 || throw(ArgumentError("an array of stride $(stride(x, 1))"))
    return pointer(x)
end

function f!(native::NativeField, du, u, t)
    native.nfe += 1
    native.plain += 1
    GC.@preserve du u run!(native, native.f, t, place(du), place(u))
    return nothing
end

function vjp!(native::NativeField, dλ, λ, u, t)
    native.nfe += 1
    native.nvjp += 1
    GC.@preserve dλ λ u run!(native, native.vjp, t, place(dλ), place(λ), place(u))
    return nothing
end

function vjp_p!(native::NativeField, dg, λ, u, t)
    native.nfe += 1
    native.nvjp += 1
    GC.@preserve dg λ u run!(native, native.vjp_p, t, place(dg), place(λ), place(u))
    return nothing
end

function fused!(native::NativeField, dλ, dg, dy, λ, u, t)
    native.nfe += 1
    native.nvjp += 1
    GC.@preserve dλ dg dy λ u run!(
        native, native.fused, t, place(dλ), place(dg), place(dy), place(λ), place(u),
    )
    return nothing
end

"∂f/∂u row by row: `n` vector-Jacobian products."
function jac!(native::NativeField, J, u, t)
    native.nfe += 1
    native.njac += 1
    (; unit, row) = native
    for i in eachindex(unit)
        fill!(unit, 0)
        unit[i] = 1
        GC.@preserve u run!(native, native.vjp, t, pointer(row), pointer(unit), place(u))
        J[i, :] .= row
    end
    return nothing
end

"∂f/∂u and ∂f/∂p."
function jacs!(native::NativeField, J, P, u, t)
    jac!(native, J, u, t)
    (; unit, param_row) = native
    for i in eachindex(unit)
        fill!(unit, 0)
        unit[i] = 1
        GC.@preserve u run!(native, native.vjp_p, t, pointer(param_row), pointer(unit), place(u))
        P[i, :] .= param_row
    end
    return nothing
end

"∂f/∂t, one number at a time."
function tgrad!(native::NativeField, dT, u, t)
    native.nfe += 1
    (; unit, row) = native
    for i in eachindex(unit)
        fill!(unit, 0)
        unit[i] = 1
        GC.@preserve u run!(native, native.vjp_t, t, pointer(row), pointer(unit), place(u))
        dT[i] = row[1]
    end
    return nothing
end
