# Lotka-Volterra with hand-written derivatives, and its exact gradient.

const P = [1.5, 1.0, 3.0, 1.0]
const CALLS = Dict{Symbol, Int}()
count!(name) = (CALLS[name] = get(CALLS, name, 0) + 1)
calls(name) = get(CALLS, name, 0)

function lv!(du, u, t)
    count!(:f)
    du[1] = P[1] * u[1] - P[2] * u[1] * u[2]
    du[2] = -P[3] * u[2] + P[4] * u[1] * u[2]
    return nothing
end

function lv_jac!(J, u, t)
    count!(:jac)
    J[1, 1], J[1, 2] = P[1] - P[2] * u[2], -P[2] * u[1]
    J[2, 1], J[2, 2] = P[4] * u[2], -P[3] + P[4] * u[1]
    return nothing
end

function lv_vjp!(dλ, λ, u, t)
    count!(:vjp)
    dλ[1] = λ[1] * (P[1] - P[2] * u[2]) + λ[2] * P[4] * u[2]
    dλ[2] = -λ[1] * P[2] * u[1] + λ[2] * (-P[3] + P[4] * u[1])
    return nothing
end

function lv_vjp_p!(dg, λ, u, t)
    count!(:vjp_p)
    dg .= (λ[1] * u[1], -λ[1] * u[1] * u[2], -λ[2] * u[2], λ[2] * u[1] * u[2])
    return nothing
end

function lv_fused!(dλ, dg, dy, λ, u, t)
    count!(:fused)
    lv_vjp!(dλ, λ, u, t)
    lv_vjp_p!(dg, λ, u, t)
    lv!(dy, u, t)
    return nothing
end

function lv_jacs!(J, Jp, u, t)
    lv_jac!(J, u, t)
    Jp .= [u[1] -u[1] * u[2] 0 0; 0 0 -u[2] u[1] * u[2]]
    return nothing
end

lv_tgrad!(dT, u, t) = (fill!(dT, 0); nothing)

function lv(T = Float64; fused = false, sign = 1)
    empty!(CALLS)
    return Field{T}(;
        f! = lv!, vjp! = lv_vjp!, vjp_p! = lv_vjp_p!, fused! = fused ? lv_fused! : nothing,
        jac! = lv_jac!, jacs! = lv_jacs!, tgrad! = lv_tgrad!, n = 2, np = 4, sign = T(sign),
    )
end

# y(1) from (1, 1), and G = |y(1) - 1|²/2 differentiated: 30-digit arithmetic
const Y1 = [2.7728509018411121, 0.25871087814256395]
const DU0 = [3.5202568952661548, -2.1927133764650720]
const DP = [4.3411475425334066, -2.0009338167918046, 1.0101206767629060, -1.3955943267338018]

relative(a, b) = sqrt(sum(abs2, a .- b) / sum(abs2, b))

options(T = Float64; tol = 1.0e-10, more...) =
    Options{T}(; reltol = T(tol), abstol = T(tol / 100), maxiters = 100_000, more...)

"The gradient of G over [0, 1] with an output in the middle, whose own gradient is zero."
function answer(adjoint, name; T = Float64, tol = 1.0e-10, keep = "dense", slots = 0, settings...)
    field = lv(T; fused = adjoint in ("backsolve", "interpolating", "discrete"))
    keep = adjoint == "backsolve" ? "outputs" : keep
    set = options(T; tol)
    fwd = forward(field, T[1, 1], T[0, 0.4, 1], algorithm(name), set; keep, slots)
    empty!(CALLS)
    g = zeros(T, 2, 3)
    g[:, 3] = fwd.states[:, 3] .- 1
    return fwd, gradient(fwd, adjoint, g, algorithm(name), set; settings...)
end

"An integrator whose interpolant does not give its own state."
struct Broken
    u::Vector{Float64}
    uprev::Vector{Float64}
    t::Float64
    tprev::Float64
    dt::Float64
end
Broken(u, uprev, t, tprev) = Broken(u, uprev, t, tprev, t - tprev)
(::Broken)(out, t) = (out .= 2; nothing)

"Evaluations that a step of a method rests on, its last one shared with the next step."
stages_of_a_step(name) = Dict("BS3" => 3, "DP5" => 6, "Tsit5" => 6, "Vern7" => 9, "Vern9" => 15)[name]
