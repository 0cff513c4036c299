# SciML's adjoint problem, with Jacobians of its right-hand side for implicit methods.

# ZygoteVJP is inert where f has vjp and vjp_p: it allocates nothing and never calls f. Without a
# choice SciML probes Enzyme on f and falls back to numerical derivatives; ReverseDiffVJP records f.
const INERT = ZygoteVJP()

# What is checkpointed, `Trajectory` sees to. Backsolve's y is reset to the stored outputs by a
# callback of ours, which measures its drift first.
sensealg(::Val{:backsolve}) = BacksolveAdjoint(autojacvec = INERT, checkpointing = false)
sensealg(::Val{:interpolating}) = InterpolatingAdjoint(autojacvec = INERT, checkpointing = false)
sensealg(::Val{:gauss}) = GaussAdjoint(autojacvec = INERT, checkpointing = false)
sensealg(::Val{:quadrature}) = QuadratureAdjoint(autojacvec = INERT)

"∂L/∂u(t_i), computed before: SciML's `u` here is a buffer it reuses, and is not looked at."
struct LossGradient{M}
    g::M
end
(loss::LossGradient)(out, u, p, t, i) = (copyto!(out, view(loss.g, :, i)); nothing)

"""
The Jacobian of an adjoint's right-hand side with respect to its own state.

λ's block is -Jᵀ, ∂L/∂p's rows are -Pᵀ, and Backsolve's y has J. What λ' and g' owe to
Backsolve's y (second derivatives of f) is left out: Newton's iteration converges without it, a
Rosenbrock method would lose its order, and is refused with Backsolve.
"""
struct AdjointJac{T, F, Y}
    field::F
    traj::Y
    params::Bool
    backsolve::Bool
    y::Vector{T}
    J::Matrix{T}
    P::Matrix{T}
end

function AdjointJac(fwd::Forward{T}, params, backsolve) where {T}
    (; n, np) = fwd.field
    J, P = zeros(T, n, n), zeros(T, n, params ? np : 0)
    return AdjointJac(fwd.field, fwd.traj, params, backsolve, zeros(T, n), J, P)
end

function (jac::AdjointJac)(W, z, p, t)
    (; field, y, J, P) = jac
    n, np, sign = field.n, size(P, 2), field.sign
    hurry(field, t)
    jac.backsolve ? copyto!(y, view(z, (length(z) - n + 1):length(z))) : jac.traj(y, t)
    if np == 0
        call_jac!(field, J, y, sign * t)
    else
        call_jacs!(field, J, P, y, sign * t)
    end
    fill!(W, 0)
    W[1:n, 1:n] .= .-sign .* transpose(J)
    np > 0 && (W[(n + 1):(n + np), 1:n] .= .-sign .* transpose(P))
    jac.backsolve && (W[(end - n + 1):end, (end - n + 1):end] .= sign .* J)
    return nothing
end

"""
The derivative of an adjoint's right-hand side with respect to time, by differences of second order
that stay in the interval y(t) is held of: a Rosenbrock method needs it.
"""
struct AdjointTgrad{T, S, Y}
    sense::S
    traj::Y
    near::Vector{T}
    far::Vector{T}
end
AdjointTgrad(sense, traj::Trajectory{T}, n) where {T} =
    AdjointTgrad(sense, traj, zeros(T, n), zeros(T, n))

function (d::AdjointTgrad{T})(dT, z, p, t) where {T}
    (; sense, near, far) = d
    low, high = interval(d.traj, t)
    h = min(cbrt(eps(T)) * max(abs(t), (high - low) / 100), (high - low) / 4)
    if low <= t - h && t + h <= high
        sense(far, z, p, t + h)
        sense(near, z, p, t - h)
        dT .= (far .- near) ./ ((t + h) - (t - h))
    else
        h = t + h > high ? -h : h
        sense(far, z, p, t + 2h)
        sense(near, z, p, t + h)
        sense(dT, z, p, t)
        dT .= (4 .* near .- far .- 3 .* dT) ./ 2h
    end
    return nothing
end

"""
    adjoint_problem(fwd, kind, alg, g, options)

SciML's problem for the adjoint state, and its callback: jumps at the loss times. These are
`fwd.ts[2:end]`; the gradient at the first is the caller's to add.
"""
function adjoint_problem(fwd::Forward, kind, alg, g, options, norm)
    method, traj = sensealg(kind), fwd.traj
    ts, loss = fwd.ts[2:end], LossGradient(g)
    none = (nothing, nothing, nothing, nothing, Val(true))
    if kind isa Val{:gauss}
        integrand = SciMLSensitivity.GaussIntegrand(traj, method, nothing, nothing)
        prob, jumps, _ = ODEAdjointProblem(
            traj, method, alg, integrand, nothing, ts, loss, none...; checkpoints = nothing,
        )
    else
        settings = kind isa Val{:quadrature} ? (;) : (; checkpoints = nothing)
        prob, _ = ODEAdjointProblem(traj, method, alg, ts, loss, none...; settings...)
        jumps = prob.kwargs[:callback]
    end
    sense = prob.f.f
    derivatives = (;)
    if implicit(alg)
        back = kind isa Val{:backsolve}
        params = back || kind isa Val{:interpolating}
        tgrad = AdjointTgrad(sense, traj, length(prob.u0))
        derivatives = (; jac = AdjointJac(fwd, params, back), tgrad)
    end
    f = odefunction(eltype(fwd.ts), sense; derivatives...)
    return problem(f, prob.u0, prob.tspan, prob.p, options, norm), opaque(only_one(jumps))
end

only_one(jumps::CallbackSet) = only(jumps.discrete_callbacks)
only_one(jumps) = jumps

"The groups of an adjoint state whose errors are controlled."
function adjoint_norm(kind, n, np, seminorm)
    λ, g, y = 1:n, (n + 1):(n + np), (n + np + 1):(2n + np)
    kind isa Union{Val{:gauss}, Val{:quadrature}} && return GroupNorm(λ)
    return GroupNorm(λ, seminorm ? (1:0) : g, kind isa Val{:backsolve} ? y : (1:0))
end
