# SciML's adjoint problem, with Jacobians of its right-hand side for implicit methods.

# ZygoteVJP is inert where f has vjp and vjp_p: it allocates nothing and never calls f. Without a
# choice SciML probes Enzyme on f and falls back to numerical derivatives; ReverseDiffVJP records f.
const INERT = ZygoteVJP()

# y is reset to the stored outputs by a callback of ours, which measures its drift first.
sensealg(::Val{:backsolve}, checkpointing) =
    BacksolveAdjoint(autojacvec = INERT, checkpointing = false)
sensealg(::Val{:interpolating}, checkpointing) =
    InterpolatingAdjoint(autojacvec = INERT, checkpointing = checkpointing)
sensealg(::Val{:gauss}, checkpointing) =
    GaussAdjoint(autojacvec = INERT, checkpointing = checkpointing)
sensealg(::Val{:quadrature}, checkpointing) = QuadratureAdjoint(autojacvec = INERT)

"∂L/∂u(t_i), computed before: SciML's `u` here is a buffer it reuses, and is not looked at."
struct LossGradient{T}
    g::Matrix{T}
end
(loss::LossGradient)(out, u, p, t, i) = (copyto!(out, view(loss.g, :, i)); nothing)

"y(t) as the adjoint's right-hand side reads it: dense, solved again between checkpoints, or in z."
function state_at(sense, z, t)
    return SciMLSensitivity.split_states(similar(z), z, t, sense)[3]
end

"""
The Jacobian of an adjoint's right-hand side with respect to its own state.

λ's block is -Jᵀ, ∂L/∂p's rows are -Pᵀ, and Backsolve's y has J. What λ' and g' owe to
Backsolve's y (second derivatives of f) is left out: Newton's iteration converges without it, a
Rosenbrock method would lose its order, and is refused with Backsolve.
"""
struct AdjointJac{T, S}
    field::Field{T}
    sense::S
    params::Bool
    backsolve::Bool
    J::Matrix{T}
    P::Matrix{T}
end

function AdjointJac(field::Field{T}, sense, params, backsolve) where {T}
    J, P = zeros(T, field.n, field.n), zeros(T, field.n, params ? field.np : 0)
    return AdjointJac(field, sense, params, backsolve, J, P)
end

function (jac::AdjointJac)(W, z, p, t)
    (; field, J, P) = jac
    n, np, sign = field.n, size(P, 2), field.sign
    hurry(field, t)
    y = jac.backsolve ? z[(end - n + 1):end] : state_at(jac.sense, z, t)
    if np == 0
        field.jac!(J, y, sign * t)
    else
        field.jacs!(J, P, y, sign * t)
    end
    fill!(W, 0)
    W[1:n, 1:n] .= .-sign .* transpose(J)
    np > 0 && (W[(n + 1):(n + np), 1:n] .= .-sign .* transpose(P))
    jac.backsolve && (W[(end - n + 1):end, (end - n + 1):end] .= sign .* J)
    return nothing
end

"The derivative of an adjoint's right-hand side with respect to time, by central differences."
struct AdjointTgrad{T, S}
    sense::S
    low::T
    high::T
end

function (d::AdjointTgrad{T})(dT, z, p, t) where {T}
    h = cbrt(eps(T)) * max(abs(t), (d.high - d.low) / 100)
    a, b = max(d.low, t - h), min(d.high, t + h)
    before = similar(dT)
    d.sense(dT, z, p, b)
    d.sense(before, z, p, a)
    dT .= (dT .- before) ./ (b - a)
    return nothing
end

"""
SciML's integrand, of which only the place for the solution between checkpoints is used: that place
has the type of the forward solution, which a dense one does not fit, and is widened here.
"""
function gauss_integrand(fwd, method)
    made = SciMLSensitivity.GaussIntegrand(fwd.sol, method, fwd.checkpoints, nothing)
    fwd.dense && return made
    kinds = Any[typeof(made).parameters...]
    kinds[findfirst(==(typeof(fwd.sol)), kinds)] = Any
    values = (getfield(made, i) for i in 1:nfields(made))
    return SciMLSensitivity.GaussIntegrand{kinds...}(values...)
end

"""
    adjoint_problem(fwd, kind, alg, g, options)

SciML's problem for the adjoint state (with its callbacks: jumps at the loss times), and the
functor of its right-hand side. Loss times are `fwd.ts[2:end]`; the gradient at the first is
the caller's to add.
"""
function adjoint_problem(fwd::Forward{T}, kind, alg, g, options) where {T}
    method = sensealg(kind, !fwd.dense)
    ts, loss = fwd.ts[2:end], LossGradient(g)
    # each of these has defaults that differ from the forward solve's, so all are given
    settings = (; fwd.checkpoints, options.abstol, options.reltol)
    none = (nothing, nothing, nothing, nothing, Val(true))
    if kind isa Val{:gauss}
        integrand = gauss_integrand(fwd, method)
        prob, jumps, _ = ODEAdjointProblem(
            fwd.sol, method, alg, integrand, nothing, ts, loss, none...; settings...,
        )
    else
        settings = kind isa Val{:quadrature} ? (;) : settings
        prob, _ = ODEAdjointProblem(fwd.sol, method, alg, ts, loss, none...; settings...)
        jumps = prob.kwargs[:callback]
    end
    sense = prob.f.f
    f = ODEFunction{true, SciMLBase.FullSpecialize}(sense)
    if implicit(alg)
        back = kind isa Val{:backsolve}
        params = back || kind isa Val{:interpolating}
        jac = AdjointJac(fwd.field, sense, params, back)
        tgrad = AdjointTgrad(sense, fwd.ts[1], fwd.ts[end])
        f = ODEFunction{true, SciMLBase.FullSpecialize}(sense; jac, tgrad)
    end
    return ODEProblem(f, prob.u0, prob.tspan, prob.p), jumps, sense
end

"The groups of an adjoint state whose errors are controlled."
function adjoint_norm(kind, n, np, seminorm)
    λ, g, y = 1:n, (n + 1):(n + np), (n + np + 1):(2n + np)
    kind isa Union{Val{:gauss}, Val{:quadrature}} && return GroupNorm([λ])
    groups = seminorm ? [λ] : [λ, g]
    return GroupNorm(kind isa Val{:backsolve} ? [groups..., y] : groups)
end

"""
SciML solves between checkpoints again and does not look at how that ended. What is held dense then
is noted in `field.peak`.
"""
function check_replay(field::Field{T}, sense) where {T}
    hasproperty(sense, :checkpoint_sol) || return nothing
    part = sense.checkpoint_sol
    part === nothing && return nothing
    code = part.cpsol.retcode
    code == ReturnCode.Success || throw(ReplayFailed(string(code)))
    vectors = length(part.cpsol.u) + sum(length, part.cpsol.k; init = 0)
    field.peak = max(field.peak, sizeof(T) * field.n * vectors)
    return nothing
end

"The solve of one interval between checkpoints, done again, did not end well."
struct ReplayFailed <: Exception
    code::String
end
