# Elementary functions without branches or tables, for numbers and lanes alike.

# e^x = 2^n e^r with |r| <= ln(2)/2; ln(2) in two parts (Cody and Waite 1980). The polynomials are those whose
# largest relative error is least: of (e^r - 1) / r, 1.4e-8 (Float32) and 1.8e-17 (Float64).
const LOG2E = 1.4426950408889634
parts_of_ln2(::Type{Float32}) = (0.693145751953125f0, 1.42860677f-6)
parts_of_ln2(::Type{Float64}) = (0.6931471803691238, 1.9082149292705877e-10)
const SERIES32 = (0.0013882457f0, 0.008366541f0, 0.0416672f0, 0.16666543f0, 0.49999997f0, 1.0f0)
const SERIES64 = (
    2.5053816022089234e-8, 2.762602705925963e-7, 2.7557407265602715e-6, 2.4801505296302994e-5,
    0.0001984126971948142, 0.0013888888931551967, 0.00833333333338926, 0.041666666666576764,
    0.1666666666666659, 0.5000000000000006, 1.0,
)
series(::Type{Float32}) = SERIES32
series(::Type{Float64}) = SERIES64
limits(::Type{Float32}) = (-104.0f0, 89.0f0)
limits(::Type{Float64}) = (-746.0, 710.0)

kind(::T) where {T <: Real} = T
kind(::Lanes{N, T}) where {N, T} = T

@inline function clip(x, low, high)
    x = where_lt(x, low, low, x)
    return where_gt(x, high, high, x)
end

"(n, e^r - 1) with x = n ln(2) + r."
@inline function reduced(x)
    T = kind(x)
    high, low = parts_of_ln2(T)
    n = nearest(x * T(LOG2E))
    r = muladd(n, -low, muladd(n, -high, x))
    return n, r * horner(r, series(T))
end

@inline horner(x, c::NTuple{N, Any}) where {N} = horner(x, splat(typeof(x), c[1]), Base.tail(c))
@inline horner(x, sum, c::Tuple) = horner(x, muladd(sum, x, c[1]), Base.tail(c))
@inline horner(x, sum, ::Tuple{}) = sum

"e^x; two factors, so that neither overflows before the result does."
@inline function exponential(x)
    T = kind(x)
    n, p = reduced(clip(x, limits(T)...))
    half = floor(n * T(0.5))
    a, b = pow2(half), pow2(n - half)
    return muladd(p, a, a) * b
end

# numbers whose last bits are those of a whole number: 1.5 2^23 and 1.5 2^52, and the bias of an exponent
whole(::Type{Float32}) = 1.5f0 * 2.0f0^23 + 127.0f0
whole(::Type{Float64}) = 1.5 * 2.0^52 + 1023.0

"e^2x - 1 for x within ±40."
@inline function exponential1(x)
    T = kind(x)
    high, low = parts_of_ln2(T)
    rounded = muladd(x, T(2 * LOG2E), whole(T))
    n, s = rounded - whole(T), raised(rounded)
    half = muladd(n, T(-low / 2), muladd(n, T(-high / 2), x))
    p = half * horner(half, twice(series(T)))
    return muladd(s, p, s - T(1))
end
"The polynomial c(2x) 2, of x."
@inline twice(c::NTuple{N, T}) where {N, T} = ntuple(k -> c[k] * T(2)^(N + 1 - k), Val(N))

"tanh x = (e^2x - 1) / (e^2x + 1), to three units in the last place."
@inline function hyperbolic(x)
    T = kind(x)
    e = exponential1(clip(x, T(-20), T(20)))
    return e / (e + T(2))
end

@inline logistic(x) = kind(x)(1) / (kind(x)(1) + exponential(-x))

# a NaN on either side comes out
@inline largest(a, b) = where_ge(a, b, a, where_ne(a, a, a, b))
@inline smallest(a, b) = where_le(a, b, a, where_ne(a, a, a, b))
@inline sign_of(x) = gt(x, zero(kind(x))) - lt(x, zero(kind(x)))
@inline inverse(x) = kind(x)(1) / x
@inline inverse_root(x) = kind(x)(1) / sqrt(x)
@inline square(x) = x * x
@inline cube(x) = x * x * x
@inline fourth(x) = square(square(x))
@inline both(a, b) = ne(a, zero(kind(a))) * ne(b, zero(kind(b)))
@inline either(a, b) = largest(ne(a, zero(kind(a))), ne(b, zero(kind(b))))
@inline negation(a) = eq(a, zero(kind(a)))
@inline power(a, b) = each(^, a, b)
@inline whole_rest(a, b) = a - b * floor(a / b)

"A choice by a comparison in one step."
const CHOICES = Dict{Symbol, Any}(
    :lt => where_lt, :le => where_le, :gt => where_gt, :ge => where_ge, :eq => where_eq,
    :ne => where_ne,
)

"What an operation of a program does; the names are those that `pyode/_julia/native` writes."
const OPERATIONS = Dict{Symbol, Any}(
    :add => +, :sub => -, :mul => *, :div => /, :neg => -, :abs => abs, :sqrt => sqrt,
    :rsqrt => inverse_root, :reciprocal => inverse, :square => square, :cube => cube,
    :fourth => fourth, :pow => power, :exp => exponential, :expm1 => x -> each(expm1, x),
    :log => x -> each(log, x), :log1p => x -> each(log1p, x), :log2 => x -> each(log2, x),
    :log10 => x -> each(log10, x), :exp2 => x -> each(exp2, x),
    :sin => x -> each(sin, x), :cos => x -> each(cos, x), :tan => x -> each(tan, x),
    :asin => x -> each(asin, x), :acos => x -> each(acos, x), :atan => x -> each(atan, x),
    :atan2 => (a, b) -> each(atan, a, b), :sinh => x -> each(sinh, x), :cosh => x -> each(cosh, x),
    :asinh => x -> each(asinh, x), :acosh => x -> each(acosh, x), :atanh => x -> each(atanh, x),
    :tanh => hyperbolic, :sigmoid => logistic, :floor => floor, :ceil => x -> -floor(-x),
    :trunc => x -> each(trunc, x), :round => nearest, :sign => sign_of, :maximum => largest,
    :minimum => smallest, :lt => lt, :le => le, :gt => gt, :ge => ge, :eq => eq, :ne => ne,
    :where => choose, :and => both, :or => either, :not => negation, :remainder => whole_rest,
    :copy => identity,
)
