# ∂L/∂p by Gauss-Legendre quadrature on each backward step, with an error estimate.

# nodes on [-1, 1] and weights (Abramowitz and Stegun 1964, table 25.4)
const GAUSS = Dict(
    2 => ([-0.5773502691896258, 0.5773502691896258], [1.0, 1.0]),
    3 => (
        [-0.7745966692414834, 0.0, 0.7745966692414834],
        [0.5555555555555556, 0.8888888888888888, 0.5555555555555556],
    ),
    4 => (
        [-0.8611363115940526, -0.33998104358485626, 0.33998104358485626, 0.8611363115940526],
        [0.34785484513745385, 0.6521451548625461, 0.6521451548625461, 0.34785484513745385],
    ),
    5 => (
        [-0.906179845938664, -0.5384693101056831, 0.0, 0.5384693101056831, 0.906179845938664],
        [
            0.23692688505618908, 0.47862867049936647, 0.5688888888888889, 0.47862867049936647,
            0.23692688505618908,
        ],
    ),
)
const HALVINGS = 8

"The backward solver's interpolant misses the end of its own step: Gauss would be wrong in silence."
struct InterpolantBroken <: Exception
    t::Float64
    miss::Float64
end

"""
    GaussSum

Integrates λᵀ∂f/∂p over each accepted backward step. SciML's own rule has one node count and no
estimate (seen wrong by 73 % in silence); here two counts are taken, `nodes - 1` and `nodes`, and a
step whose estimate is above the tolerance is halved. `worst` is the largest estimate left, in
units of the tolerance.
"""
mutable struct GaussSum{T, V, F, Y}
    const field::F
    const traj::Y
    nodes::Int
    reltol::T
    abstol::T
    total::V
    coarse::V
    fine::V
    dg::V
    λ::V
    end_λ::V
    y::V
    worst::T
    const λ_of_t::Union{Nothing, Recent{T}}
end

function GaussSum(field::Field{T}, traj, alg, options) where {T}
    order = SciMLBase.alg_order(alg)
    nodes = order <= 3 ? 3 : order <= 5 ? 4 : 5
    reltol = max(options.reltol, 16 * eps(T))
    p() = blank(field, field.np)
    state() = blank(field, field.n)
    return GaussSum(
        field, traj, nodes, reltol, options.abstol, p(), p(), p(), p(), state(), state(), state(),
        zero(T), cubic(alg) ? Recent{T}(field.n) : nothing,
    )
end

(::GaussSum)(u, t, integ) = true

function (sum::GaussSum)(integ)
    if sum.field.np > 0 && integ.t != integ.tprev
        check_interpolant(sum, integ)
        sum.λ_of_t === nothing || advance!(sum.λ_of_t, integ)
        panel!(sum, integ, integ.t, integ.tprev, 0)
    end
    return u_modified!(integ, false)
end

"""
Since OrdinaryDiffEqCore 3.11 to 3.16 the step size is overwritten before callbacks run in a step that
a loss time cut short, and the interpolant is then read at wrong places. So the size must be that of
the step, to the 100 roundings of the time by which a step is moved to end at a loss time; and the
interpolant must give λ at the step's end, but for two roundings, both small beside what λ did in the
step: that of times, in a step that is hardly longer, and that of a dense output's large coefficients
(Vern9's in Float32).
"""
function check_interpolant(sum::GaussSum{T}, integ) where {T}
    (; λ, end_λ) = sum
    copyto!(end_λ, integ.u)
    integ(λ, integ.t)
    top = maximum(abs, end_λ)
    scale, floor = sum.abstol + sum.reltol * top, 1000 * eps(T) * top
    λ .-= end_λ
    miss = maximum(abs, λ)
    end_λ .-= integ.uprev
    size, clock = integ.t - integ.tprev, eps(max(abs(integ.t), abs(integ.tprev)))
    rounding = (8 * clock / abs(size) + 100_000 * eps(T)) * maximum(abs, end_λ)
    overwritten = abs(integ.dt - size) > 101 * clock
    (overwritten || miss > max(scale, floor, rounding)) &&
        throw(InterpolantBroken(Float64(integ.t), Float64(miss)))
    return nothing
end

function rule!(out, sum::GaussSum{T}, integ, a, b, nodes) where {T}
    fill!(out, 0)
    points, weights = GAUSS[nodes]
    for (x, w) in zip(points, weights)
        t = (a + b) / 2 + (b - a) / 2 * T(x)
        sum.λ_of_t === nothing ? integ(sum.λ, t) : sum.λ_of_t(sum.λ, t)
        sum.traj(sum.y, t)
        VjpP(sum.field)(sum.dg, sum.λ, sum.y, nothing, t)
        out .+= (b - a) / 2 * T(w) .* sum.dg
    end
    return out
end

"One panel from a to b (a < b), halved until its two node counts agree."
function panel!(sum::GaussSum, integ, a, b, depth)
    rule!(sum.coarse, sum, integ, a, b, sum.nodes - 1)
    rule!(sum.fine, sum, integ, a, b, sum.nodes)
    off = disagreement(sum)
    if off > 1 && depth < HALVINGS
        middle = (a + b) / 2
        panel!(sum, integ, a, middle, depth + 1)
        panel!(sum, integ, middle, b, depth + 1)
        return nothing
    end
    sum.worst = max(sum.worst, off)
    sum.total .+= sum.fine
    return nothing
end

"RMS of the two node counts' difference in units of the tolerance; NaN counts as agreement."
function disagreement(sum::GaussSum)
    (; total, coarse, fine, abstol, reltol) = sum
    coarse .= (fine .- coarse) ./ (abstol .+ reltol .* max.(abs.(total), abs.(fine)))
    return sqrt(squares(coarse) / length(fine))
end
