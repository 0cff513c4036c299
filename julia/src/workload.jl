# What a session's first solves would compile is compiled with the package.

const KINDS = ("interpolating", "gauss", "quadrature", "backsolve")

"y' = (p₁y₂, p₂y₁), as a field."
function example(T, fused)
    f!(du, u, t) = (du .= (u[2], -u[1]); nothing)
    vjp!(dλ, λ, u, t) = (dλ .= (-λ[2], λ[1]); nothing)
    vjp_p!(dg, λ, u, t) = (dg .= (λ[1] * u[2], -λ[2] * u[1]); nothing)
    both!(dλ, dg, dy, λ, u, t) = (vjp!(dλ, λ, u, t); vjp_p!(dg, λ, u, t); f!(dy, u, t))
    jac!(J, u, t) = (J .= T[0 1; -1 0]; nothing)
    jacs!(J, P, u, t) = (jac!(J, u, t); P .= [u[2] 0; 0 -u[1]]; nothing)
    return Field{T}(;
        f!, vjp!, vjp_p!, fused! = fused ? both! : nothing, jac!, jacs!,
        tgrad! = (dT, u, t) -> fill!(dT, 0), n = 2, np = 2,
    )
end

"A solve and its gradient, by the way that a caller with addresses takes."
function exercise(T, name, kind, keep)
    field = example(T, kind in ("interpolating", "backsolve"))
    y, ts, ys, λ, p = T[1, 0], [0.0, 0.3, 1.0], zeros(T, 2, 3), zeros(T, 2), zeros(T, 2)
    GC.@preserve y ts ys λ p begin
        set = options_of(field, 1.0e-3, 1.0e-5, true, 0.0, 0.0, 1.0, 1000, Int(pointer(ts)), 0)
        fwd = forward_at(
            field, Int(pointer(y)), Int(pointer(ts)), 3, name, set, keep, 4, Int(pointer(ys)), 0,
            Inf,
        )
        found = gradient_at(
            fwd, kind, Int(pointer(ys)), name, set, true, false, 1.0e-3, 1.0e-5,
            Int(pointer(λ)), Int(pointer(p)), Inf,
        )
        interpolate_at(fwd, 0.5, Int(pointer(y)), Inf)
        facts(found.report), facts(field.trouble)
    end
    return nothing
end

@compile_workload begin
    for (T, name) in (
            (Float64, "Tsit5"), (Float64, "DP5"), (Float64, "KenCarp4"), (Float32, "Tsit5"),
            (Float32, "DP5"),
        )
        for kind in KINDS
            exercise(T, name, kind, kind == "backsolve" ? "outputs" : "dense")
        end
        exercise(T, name, "gauss", "slots")
        exercise(T, name, "interpolating", "slots")
    end
end

for T in (Float32, Float64)
    V, M = Vector{T}, Matrix{T}
    for crossing in ((V, V), (V, V, V), (V, V, V, V, V), (M, V), (M, M, V))
        precompile(Tuple{Addressed, crossing..., T})
    end
end
