# The backward solve.

"""
    Gradient

- `λ`: λ(t0) before ∂L/∂u(t0) is added; `p`: ∂L/∂p
- `drift`: Backsolve: RMS of y_back - y_i in units of the forward tolerance, from the last output
  to the first
- `estimate`: Gauss, Quadrature: the largest quadrature error left, in units of the tolerance
"""
struct Gradient{V}
    λ::V
    p::V
    drift::Vector{Float64}
    estimate::Float64
    report::Report
end

"""
    gradient(fwd, adjoint, g, alg, options; ...) -> Gradient

Pull `g` (`n × m`, ∂L/∂u at each output) back through a forward solve.

`adjoint`: "backsolve", "interpolating", "gauss", "quadrature" or "discrete". `resync`: Backsolve resets y at each
output. `seminorm`: ∂L/∂p does not control the step. `quad_reltol`, `quad_abstol`: Quadrature's own.
`alg` is neither a multistep method (they stay at low order after a loss time) nor Kvaerno5 (its third
stage lies beyond the step, where y(t) may not be held).
"""
function gradient(
        fwd::Forward{T}, adjoint, g, alg, options; resync = true, seminorm = false,
        quad_reltol = options.reltol, quad_abstol = options.abstol,
    ) where {T}
    return gradient(fwd, adjoint, g, alg, options, resync, seminorm, quad_reltol, quad_abstol)
end

function gradient(
        fwd::Forward{T}, adjoint, g, alg, options, resync, seminorm, quad_reltol, quad_abstol,
    ) where {T}
    field = fwd.field
    forget!(field)
    field.trouble.what, field.peak = "", 0
    adjoint == "discrete" && return discrete(fwd, g)
    try
        return Base.inferencebarrier(pull_back)(
            fwd, Val(Symbol(adjoint)), g, alg, options, resync, seminorm, T(quad_reltol),
            T(quad_abstol),
        )
    catch err  # the clock may also run out before the first step, or in the quadrature
        err isa OutOfTime || rethrow()
        ended = Report(;
            code = "OutOfTime", t = err.t, dt = 0.0, top = 0.0, accepted = 0, rejected = 0,
        )
        return Gradient(blank(field, field.n), blank(field, field.np), Float64[], 0.0, ended)
    end
end

function pull_back(
        fwd::Forward{T}, kind, g, alg, options, resync, seminorm, quad_reltol, quad_abstol,
    ) where {T}
    field = fwd.field
    norm = adjoint_norm(kind, field.n, field.np, seminorm)
    loss = g[:, 2:end]
    prob, jumps = adjoint_problem(fwd, kind, alg, loss, options, norm)
    drift = Drift(fwd, resync)
    sum = kind isa Val{:gauss} ?
        GaussSum(field, fwd.traj, alg, options) : nothing
    own = kind isa Val{:gauss} ? opaque(sum) : kind isa Val{:backsolve} ? opaque(drift) : idle()
    # no step straddles two intervals that are solved again one at a time
    held_at = fwd.dense || kind isa Val{:backsolve} ? T[] : fwd.traj.times
    options = with_stops(options, unique(vcat(held_at, options.tstops)))
    dense = kind isa Val{:quadrature}
    start = adjoint_norm(kind, field.n, field.np, true)  # ∂L/∂p begins at zero
    integ = begin_solve(
        prob, alg, options; own, jumps, dense, stops = fwd.ts, norm = start, hint = fwd.step,
    )
    ended = run!(integ, field.sign)
    field.peak += fwd.report.bytes + (dense ? held(integ.sol) : 0)
    λ_of_t = dense ? dense_output(integ.sol, alg, vcat(fwd.ts, options.tstops)) : nothing
    return finish(kind, fwd, integ, λ_of_t, sum, drift, ended, quad_reltol, quad_abstol)
end

"Measures how far Backsolve's y is from the stored outputs, and resets it."
struct Drift{F, V}
    fwd::F
    resync::Bool
    values::Vector{Float64}
    off::V
end
Drift(fwd, resync) = Drift(fwd, resync, Float64[], blank(fwd.field, fwd.field.n))

(drift::Drift)(u, t, integ) = t != drift.fwd.ts[end] && insorted(t, drift.fwd.ts)

function (drift::Drift)(integ)
    (; fwd, off) = drift
    (; abstol, reltol, adaptive) = fwd.traj.options
    n = length(off)
    y = view(integ.u, (length(integ.u) - n + 1):length(integ.u))
    held = view(fwd.states, :, searchsortedfirst(fwd.ts, integ.t))
    unit(size::T, a, r) where {T} = adaptive ? a + r * size : T(1.0e-6) * max(size, T(1.0e-3))
    off .= (y .- held) ./ unit.(abs.(held), abstol, reltol)
    push!(drift.values, sqrt(squares(off) / n))
    drift.resync && copyto!(y, held)
    return u_modified!(integ, drift.resync)
end

function finish(
        kind, fwd::Forward{T}, integ, λ_of_t, sum, drift, ended, reltol, abstol,
    ) where {T}
    n, np = fwd.field.n, fwd.field.np
    λ, p, estimate = integ.u[1:n], blank(fwd.field, np), 0.0
    if ok(ended)
        if kind isa Val{:gauss}
            p, estimate = sum.total, Float64(sum.worst)
        elseif kind isa Val{:quadrature}
            p, estimate = quadrature(fwd, λ_of_t, reltol, abstol)
        else
            p = integ.u[(n + 1):(n + np)]
        end
    end
    return Gradient(λ, p, drift.values, Float64(estimate), ended)
end
