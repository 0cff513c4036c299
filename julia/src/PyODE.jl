"""
    PyODE

Solves ODEs whose right-hand side is a callback (a torch module, or any Julia function) with
OrdinaryDiffEq, and differentiates them with SciMLSensitivity. No automatic differentiation ever
sees the callback: it brings its own vector-Jacobian products and Jacobians.

Times run forwards here: a solve from t0 down to t1 comes as `s = -t` (`Field.sign`).
"""
module PyODE

using ADTypes: AutoFiniteDiff
using ForwardDiff: ForwardDiff
using LinearAlgebra: BLAS, BlasInt
using OrdinaryDiffEqBDF: FBDF, QNDF
using OrdinaryDiffEqCore: OrdinaryDiffEqCore
using OrdinaryDiffEqLowOrderRK: BS3, DP5, Euler, Heun, Midpoint, RK4
using OrdinaryDiffEqRosenbrock: Rodas5P, Rosenbrock23
using OrdinaryDiffEqSDIRK: KenCarp4, Kvaerno5, TRBDF2
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern7, Vern9
using PrecompileTools: @compile_workload
using QuadGK: quadgk!
using SciMLBase: SciMLBase, CallbackSet, DiscreteCallback, ODEFunction, ODEProblem, init,
    solve!, u_modified!
using SciMLSensitivity: SciMLSensitivity, BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint,
    ODEAdjointProblem, QuadratureAdjoint, ZygoteVJP
using SymbolicIndexingInterface: SymbolicIndexingInterface

include("steps.jl")
include("algorithms.jl")
include("opaque.jl")
include("native/lanes.jl")
include("native/elementary.jl")
include("native/program.jl")
include("native/emit.jl")
include("native/native.jl")
include("tableau.jl")
include("tape.jl")
include("places.jl")
include("fields.jl")
include("failures.jl")
include("norms.jl")
include("checkpoints.jl")
include("hermite.jl")
include("trajectory.jl")
include("forward.jl")
include("adjoint_problem.jl")
include("gauss.jl")
include("quadrature.jl")
include("gradient.jl")
include("discrete.jl")
include("boundary.jl")
include("crossing.jl")
include("foreign.jl")
include("workload.jl")

export Field, Options, algorithm, forward, gradient

end
