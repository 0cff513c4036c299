# OrdinaryDiffEq's algorithms by name, set up so that no AD sees a callback.

# Vern7 and Vern9 with lazy dense output evaluate f when the solution is read: wrong by 4.5e-6 at
# rtol 1e-10 inside the adjoints. AutoFiniteDiff() is never reached, the Jacobian being given; it
# makes sure that dual numbers cannot be. The SDIRK methods' smoothed error estimate is off by a
# factor of γ dt (it solves with J - I/(γ dt) where I - γ dt J is meant): gradients a thousand
# tolerances off at 1e-10.
const ALGORITHMS = Dict{String, Any}(
    "Euler" => Euler(),
    "Midpoint" => Midpoint(),
    "Heun" => Heun(),
    "RK4" => RK4(),
    "BS3" => BS3(),
    "DP5" => DP5(),
    "Tsit5" => Tsit5(),
    "Vern7" => Vern7(lazy = false),
    "Vern9" => Vern9(lazy = false),
    "Rosenbrock23" => Rosenbrock23(autodiff = AutoFiniteDiff()),
    "Rodas5P" => Rodas5P(autodiff = AutoFiniteDiff()),
    "TRBDF2" => TRBDF2(autodiff = AutoFiniteDiff(), smooth_est = false),
    "KenCarp4" => KenCarp4(autodiff = AutoFiniteDiff(), smooth_est = false),
    "Kvaerno5" => Kvaerno5(autodiff = AutoFiniteDiff(), smooth_est = false),
    "QNDF" => QNDF(autodiff = AutoFiniteDiff()),
    "FBDF" => FBDF(autodiff = AutoFiniteDiff()),
)

const Implicit = Union{Rosenbrock23, Rodas5P, TRBDF2, KenCarp4, Kvaerno5, QNDF, FBDF}

"Whether an algorithm's dense output is a cubic, and is replaced by ours."
cubic(alg) = alg isa Union{TRBDF2, KenCarp4, Kvaerno5}

"The algorithm of that name."
algorithm(name::AbstractString) = ALGORITHMS[String(name)]

"Whether an algorithm solves equations, and needs ∂f/∂u."
implicit(alg) = alg isa Implicit

# a number, so that solvers are compiled once; or one for each entry of the state
const Tolerance{T} = Union{T, AbstractVector{T}}

"""
    Options(; reltol, abstol, ...)

Every setting of one direction of a solve, none left to a default of SciML's.

`reltol` and `abstol` of a forward solve may be vectors; those of a backward one are numbers.
`dt = 0` lets the solver choose the first step. `maxiters` bounds accepted and rejected steps. `control` is for
explicit methods: the others have SciML's own.
"""
Base.@kwdef struct Options{T}
    reltol::Tolerance{T}
    abstol::Tolerance{T}
    adaptive::Bool = true
    dt::T = zero(T)
    dtmin::T = zero(T)
    dtmax::T = T(Inf)
    maxiters::Int
    tstops::Vector{T} = T[]
    control::Controller = Controller()
end

"The same with other times to stop at."
with_stops(o::Options, tstops) = Options(;
    o.reltol, o.abstol, o.adaptive, o.dt, o.dtmin, o.dtmax, o.maxiters, tstops, o.control,
)
