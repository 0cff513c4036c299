# Vectors of the processor's: what a native field's loops are made of.

"`N` numbers in one register; arithmetic is lane by lane."
struct Lanes{N, T}
    data::NTuple{N, VecElement{T}}
    Lanes{N, T}(data) where {N, T} = new{N, T}(data)
end

const NAMES = Dict(Float32 => "float", Float64 => "double", Int32 => "i32", Int64 => "i64")
const SUFFIX = Dict(Float32 => "f32", Float64 => "f64")
integer(::Type{Float32}) = Int32
integer(::Type{Float64}) = Int64

"LLVM code on `%0`, `%1`, …, vectors of `N` numbers; `V` in it is their type."
function lanewise_code(N, T, args, code; result = T)
    ir = replace(code, "V" => "<$N x $(NAMES[T])>")
    vector = NTuple{N, VecElement{T}}
    out = NTuple{N, VecElement{result}}
    types = Expr(:curly, :Tuple, fill(vector, length(args))...)
    return :(Lanes{$N, $result}(Base.llvmcall($ir, $out, $types, $([:($a.data) for a in args]...))))
end

for (op, name) in ((:+, "fadd"), (:-, "fsub"), (:*, "fmul"), (:/, "fdiv"))
    @eval @inline @generated Base.$op(a::Lanes{N, T}, b::Lanes{N, T}) where {N, T} =
        lanewise_code(N, T, (:a, :b), $("%r = $name contract V %0, %1\nret V %r"))
end
@inline @generated Base.:-(a::Lanes{N, T}) where {N, T} =
    lanewise_code(N, T, (:a,), "%r = fneg V %0\nret V %r")

"An LLVM intrinsic of vectors."
function intrinsic(N, T, name, args)
    vector = NTuple{N, VecElement{T}}
    types = Expr(:tuple, fill(vector, length(args))...)
    full = "llvm.$name.v$N$(SUFFIX[T])"
    return :(Lanes{$N, $T}(ccall($full, llvmcall, $vector, $types, $([:($a.data) for a in args]...))))
end
@inline @generated Base.muladd(
    a::Lanes{N, T}, b::Lanes{N, T}, c::Lanes{N, T},
) where {N, T} = intrinsic(N, T, "fma", (:a, :b, :c))
@inline @generated Base.sqrt(a::Lanes{N, T}) where {N, T} = intrinsic(N, T, "sqrt", (:a,))
@inline @generated Base.abs(a::Lanes{N, T}) where {N, T} = intrinsic(N, T, "fabs", (:a,))
@inline @generated nearest(a::Lanes{N, T}) where {N, T} = intrinsic(N, T, "rint", (:a,))
@inline @generated Base.floor(a::Lanes{N, T}) where {N, T} = intrinsic(N, T, "floor", (:a,))
@inline nearest(a::Real) = round(a, RoundNearest)

# a condition is 1 or 0: LLVM sees through `test` of it
for (op, name) in (
        (:lt, "olt"), (:le, "ole"), (:gt, "ogt"), (:ge, "oge"), (:eq, "oeq"), (:ne, "une"),
    )
    code = "%c = fcmp $name V %0, %1\n%r = uitofp <N x i1> %c to V\nret V %r"
    @eval @inline @generated $op(a::Lanes{N, T}, b::Lanes{N, T}) where {N, T} =
        lanewise_code(N, T, (:a, :b), replace($code, "<N x" => "<$N x"))
end
const CHOICE = "%c = fcmp une V %0, zeroinitializer\n%r = select <N x i1> %c, V %1, V %2\nret V %r"
@inline @generated choose(
    c::Lanes{N, T}, a::Lanes{N, T}, b::Lanes{N, T},
) where {N, T} = lanewise_code(N, T, (:c, :a, :b), replace(CHOICE, "<N x" => "<$N x"))
# a choice by a comparison: two instructions, and no number between
const COMPARED = "%c = fcmp OP V %0, %1\n%r = select <N x i1> %c, V %2, V %3\nret V %r"
for (op, name, base) in (
        (:lt, "olt", :<), (:le, "ole", :<=), (:gt, "ogt", :>), (:ge, "oge", :>=),
        (:eq, "oeq", :(==)), (:ne, "une", :!=),
    )
    where_op = Symbol(:where_, op)
    @eval @inline @generated $where_op(
        a::Lanes{N, T}, b::Lanes{N, T}, x::Lanes{N, T}, y::Lanes{N, T},
    ) where {N, T} = lanewise_code(
        N, T, (:a, :b, :x, :y), replace(COMPARED, "<N x" => "<$N x", "OP" => $name),
    )
    @eval @inline $where_op(a::T, b::T, x::T, y::T) where {T <: Real} = ifelse($base(a, b), x, y)
    @eval @inline function $where_op(a, b, x, y)
        L = lanes_of(a, b, x, y)
        return $where_op(splat(L, a), splat(L, b), splat(L, x), splat(L, y))
    end
end
"The type of the vector among some values."
@inline lanes_of(a::Lanes, more...) = typeof(a)
@inline lanes_of(a::Real, more...) = lanes_of(more...)
for (op, base) in ((:lt, :<), (:le, :<=), (:gt, :>), (:ge, :>=), (:eq, :(==)), (:ne, :!=))
    @eval @inline $op(a::T, b::T) where {T <: Real} = T(ifelse($base(a, b), 1, 0))
end
@inline choose(c::T, a::T, b::T) where {T <: Real} = ifelse(c != 0, a, b)

"2^n of whole numbers within the exponent's range."
@inline @generated function pow2(n::Lanes{N, T}) where {N, T}
    I = "<$N x $(NAMES[integer(T)])>"
    bits, bias = T === Float32 ? (23, 127) : (52, 1023)
    each(x) = "<" * join(fill("$(NAMES[integer(T)]) $x", N), ", ") * ">"
    code = "%i = fptosi V %0 to $I\n%b = add $I %i, $(each(bias))\n" *
        "%s = shl $I %b, $(each(bits))\n%r = bitcast $I %s to V\nret V %r"
    return lanewise_code(N, T, (:n,), code)
end
"2^n of `whole` + n: the last bits, where the exponent's are."
@inline @generated function raised(x::Lanes{N, T}) where {N, T}
    I = "<$N x $(NAMES[integer(T)])>"
    each = "<" * join(fill("$(NAMES[integer(T)]) $(T === Float32 ? 23 : 52)", N), ", ") * ">"
    code = "%i = bitcast V %0 to $I\n%s = shl $I %i, $each\n%r = bitcast $I %s to V\nret V %r"
    return lanewise_code(N, T, (:x,), code)
end
@inline raised(x::Float32) = reinterpret(Float32, reinterpret(Int32, x) << 23)
@inline raised(x::Float64) = reinterpret(Float64, reinterpret(Int64, x) << 52)
@inline pow2(n::Float32) = reinterpret(Float32, (unsafe_trunc(Int32, n) + Int32(127)) << 23)
@inline pow2(n::Float64) = reinterpret(Float64, (unsafe_trunc(Int64, n) + 1023) << 52)

@inline splat(::Type{Lanes{N, T}}, x::T) where {N, T} = Lanes{N, T}(ntuple(_ -> VecElement(x), Val(N)))
@inline splat(::Type{Lanes{N, T}}, x::Lanes{N, T}) where {N, T} = x
@inline splat(::Type{T}, x::T) where {T <: Real} = x

# numbers that are the same in every lane stay numbers until they meet a vector
for op in (:+, :-, :*, :/)
    @eval @inline Base.$op(a::Lanes{N, T}, b::T) where {N, T} = $op(a, splat(Lanes{N, T}, b))
    @eval @inline Base.$op(a::T, b::Lanes{N, T}) where {N, T} = $op(splat(Lanes{N, T}, a), b)
end
for op in (:lt, :le, :gt, :ge, :eq, :ne)
    @eval @inline $op(a::Lanes{N, T}, b::T) where {N, T} = $op(a, splat(Lanes{N, T}, b))
    @eval @inline $op(a::T, b::Lanes{N, T}) where {N, T} = $op(splat(Lanes{N, T}, a), b)
end
const Number1{T} = Union{T, Lanes{N, T} where {N}}
for op in (:choose, :(Base.muladd))
    @eval @inline $op(a::Lanes{N, T}, b::Number1{T}, c::Number1{T}) where {N, T} =
        $op(a, splat(Lanes{N, T}, b), splat(Lanes{N, T}, c))
    @eval @inline $op(a::T, b::Lanes{N, T}, c::Number1{T}) where {N, T} =
        $op(splat(Lanes{N, T}, a), b, splat(Lanes{N, T}, c))
    @eval @inline $op(a::T, b::T, c::Lanes{N, T}) where {N, T} =
        $op(splat(Lanes{N, T}, a), splat(Lanes{N, T}, b), c)
end

"A function of numbers, lane by lane."
@inline each(f, a::Real) = f(a)
@inline each(f, a::Lanes{N, T}) where {N, T} =
    Lanes{N, T}(ntuple(i -> VecElement{T}(f(a.data[i].value)), Val(N)))
@inline each(f, a::Real, b::Real) = f(a, b)
@inline each(f, a::Lanes{N, T}, b::Lanes{N, T}) where {N, T} = Lanes{N, T}(
    ntuple(i -> VecElement{T}(f(a.data[i].value, b.data[i].value)), Val(N)),
)
@inline each(f, a::Lanes{N, T}, b::T) where {N, T} = each(f, a, splat(Lanes{N, T}, b))
@inline each(f, a::T, b::Lanes{N, T}) where {N, T} = each(f, splat(Lanes{N, T}, a), b)

"The sum of all lanes."
@inline @generated function total(a::Lanes{N, T}) where {N, T}
    t, s = NAMES[T], SUFFIX[T]
    name = "llvm.vector.reduce.fadd.v$N$s"
    ir = """
    declare $t @$name($t, <$N x $t>)
    define $t @entry(<$N x $t> %x) alwaysinline {
      %r = call reassoc $t @$name($t $(T === Float32 ? "-0.0" : "-0.0"), <$N x $t> %x)
      ret $t %r
    }
    """
    vector = NTuple{N, VecElement{T}}
    return :(Base.llvmcall(($ir, "entry"), $T, Tuple{$vector}, a.data))
end
@inline total(a::Real) = a

# memory: `i` counts numbers from 0; nothing is known of alignment
@inline load(::Type{T}, p::Ptr{T}, i) where {T <: Real} = unsafe_load(p, i + 1)
@inline load(::Type{Lanes{N, T}}, p::Ptr{T}, i) where {N, T} =
    Lanes{N, T}(unsafe_load(Ptr{NTuple{N, VecElement{T}}}(p + i * sizeof(T))))
@inline gather(::Type{Lanes{N, T}}, p::Ptr{T}, i, s) where {N, T} =
    Lanes{N, T}(ntuple(k -> VecElement{T}(unsafe_load(p, i + (k - 1) * s + 1)), Val(N)))
@inline store(p::Ptr{T}, i, x::T) where {T} = (unsafe_store!(p, x, i + 1); nothing)
@inline store(p::Ptr{T}, i, x::Lanes{N, T}) where {N, T} =
    (unsafe_store!(Ptr{NTuple{N, VecElement{T}}}(p + i * sizeof(T)), x.data); nothing)
@inline function scatter(p::Ptr{T}, i, s, x::Lanes{N, T}) where {N, T}
    ntuple(k -> (unsafe_store!(p, x.data[k].value, i + (k - 1) * s + 1); nothing), Val(N))
    return nothing
end
