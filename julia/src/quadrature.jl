# ∂L/∂p by adaptive Gauss-Kronrod quadrature over the dense forward and backward solutions.

const EVALUATIONS = 200_000

"Gauss-Kronrod between loss times; the integral and the largest error estimate over its tolerance."
function quadrature(fwd::Forward{T}, λ_of_t, reltol, abstol) where {T}
    field = fwd.field
    total, part = blank(field, field.np), blank(field, field.np)
    field.np == 0 && return total, zero(T)
    worst, λ, y = zero(T), blank(field, field.n), blank(field, field.n)
    integrand = function (out, t)
        λ_of_t(λ, t)
        fwd.traj(y, t)
        VjpP(field)(out, λ, y, nothing, t)
        return out
    end
    scale = sqrt(T(field.np))
    for i in (length(fwd.ts) - 1):-1:1
        a, b = fwd.ts[i], fwd.ts[i + 1]
        rtol, atol = max(reltol, 16 * eps(T)), abstol * scale
        _, error = quadgk!(integrand, part, a, b; rtol, atol, maxevals = EVALUATIONS)
        total .+= part
        size = sqrt(sum(abs2, part))
        worst = max(worst, error / max(atol, rtol * size))
    end
    return total, worst
end
