# A Runge-Kutta method's numbers, read off OrdinaryDiffEq's own solver.

"""
    Tableau{T}

An explicit method: stage `i` is f at `u + h Σ_j a[i, j] k_j` and time `t + c[i] h`, a step ends at
`u + h Σ_j b[j] k_j`, and its output at `t + θh` is `u + h Σ_j w_j(θ) k_j` with the polynomials
`w_j` known at `nodes` (`samples[:, m]` is w at `nodes[m]`).

- `chained`: the last stage is f at the step's end, and the next step's first
- `calls`: evaluations of an accepted step, in the order of the stages (a chained method's first
  stage is the step before's)
"""
struct Tableau{T}
    a::Matrix{T}
    b::Vector{T}
    c::Vector{T}
    chained::Bool
    calls::Int
    nodes::Vector{T}
    samples::Matrix{T}
end

stages(tableau::Tableau) = length(tableau.b)
"The stage of a step's evaluation `q`."
stage(tableau::Tableau, q) = tableau.chained ? q + 1 : q

const DEGREE = 10  # Vern9's dense output has degree 9
const MOST = 32  # stages

"A right-hand side whose evaluations, whatever the state, are unit vectors: stage i gives e_i."
mutable struct Script{T}
    times::Vector{T}
    points::Vector{Vector{T}}
    next::Int
end
Script{T}() where {T} = Script{T}(T[], Vector{T}[], 1)

function (script::Script)(du, u, p, t)
    push!(script.times, t)
    push!(script.points, copy(u))
    fill!(du, 0)
    first = iszero(t) && iszero(u)
    first || (script.next += 1)
    du[first ? 1 : script.next] = 1
    return nothing
end

const TABLEAUS = Dict{Tuple{Symbol, DataType}, Any}()

"""
    tableau(alg, T) -> Tableau{T}

One step of length one from zero, in which stage i's derivative is the unit vector e_i: the states
that the solver asks for are the rows of its tableau, and what it returns are its weights.
"""
tableau(alg, T) =
    get!(() -> probe(alg, T), TABLEAUS, (nameof(typeof(alg)), T))::Tableau{T}

function probe(alg, T)
    implicit(alg) && throw(NotReadable(string(nameof(typeof(alg)))))
    script = Script{T}()
    options = Options{T}(; reltol = T(1), abstol = T(1), adaptive = false, dt = T(1), maxiters = 10)
    norm = GroupNorm(1:MOST)
    prob = problem(odefunction(T, script), zeros(T, MOST), (T(0), T(1)), T[], options, norm)
    integ = begin_solve(prob, alg, options; dense = true)
    before = length(script.times)
    solve!(integ)
    times, points = script.times[(before + 1):end], script.points[(before + 1):end]
    count = script.next
    chained = !iszero(points[1])
    a, c = zeros(T, count, count), zeros(T, count)
    for (q, i) in enumerate((chained ? 2 : 1):count)
        a[i, :], c[i] = points[q][1:count], times[q]
    end
    readable = length(points) == count - chained && all(iszero, a[i, j] for i in 1:count for j in i:count)
    readable && (!chained || points[end] == integ.u) || throw(NotReadable(string(nameof(typeof(alg)))))
    nodes = T[(1 - cospi(m / DEGREE)) / 2 for m in 0:DEGREE]
    samples, out = zeros(T, count, DEGREE + 1), zeros(T, MOST)
    for (m, θ) in enumerate(nodes)
        integ.sol(out, θ)
        samples[:, m] = out[1:count]
    end
    return Tableau{T}(a, integ.u[1:count], c, chained, length(points), nodes, samples)
end

"A solver's steps are not those of an explicit Runge-Kutta method, or not as they were read."
struct NotReadable <: Exception
    name::String
end

"Weights of the dense output at θ: Lagrange's polynomials through Chebyshev's nodes, barycentric."
function weights!(w, tableau::Tableau{T}, θ) where {T}
    (; nodes, samples) = tableau
    fill!(w, 0)
    total = zero(T)
    for m in eachindex(nodes)
        gap = θ - nodes[m]
        if gap == 0
            copyto!(w, view(samples, :, m))
            return w
        end
        half = m == 1 || m == length(nodes)
        share = (isodd(m) ? one(T) : -one(T)) / (half ? 2gap : gap)
        total += share
        add!(w, share, view(samples, :, m))
    end
    w ./= total
    return w
end

"y += αx"
function add!(y, α, x)
    @inbounds @simd for i in eachindex(y, x)
        y[i] = muladd(α, x[i], y[i])
    end
    return nothing
end
