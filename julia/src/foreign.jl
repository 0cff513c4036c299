# A Julia ODEProblem whose right-hand side is used elsewhere, with its derivatives.

"""
    Foreign(prob)

The right-hand side of an `ODEProblem`, with derivatives by ForwardDiff: it is Julia's own code.
"""
struct Foreign{F, U, P}
    f::F
    u0::U
    p::P
    inplace::Bool
end

function Foreign(prob::ODEProblem)
    p = prob.p isa SciMLBase.NullParameters || prob.p === nothing ? Float64[] : Float64.(prob.p)
    f = SciMLBase.unwrapped_f(prob.f.f)
    return Foreign(f, Float64.(vec(prob.u0)), vec(collect(p)), SciMLBase.isinplace(prob))
end

function (foreign::Foreign)(u, p, t)
    foreign.inplace || return foreign.f(u, p, t)
    du = similar(u, promote_type(eltype(u), eltype(p), typeof(t)))
    foreign.f(du, u, p, t)
    return du
end

start_of(foreign::Foreign, prob) = (foreign.u0, foreign.p, Float64.(collect(prob.tspan)))

"du at an address, from u and p at addresses."
function foreign_at(foreign::Foreign, u, p, t, du)
    np = length(foreign.p)
    write_to(du, Vector{Float64}(foreign(
        read_vector(Float64, u, length(foreign.u0)), read_vector(Float64, p, np), t,
    )))
    return nothing
end

"∂f/∂(u, p, t) at an address, `n × (n + np + 1)`."
function derivatives_at(foreign::Foreign, u, p, t, jac)
    n, np = length(foreign.u0), length(foreign.p)
    z = vcat(read_vector(Float64, u, n), read_vector(Float64, p, np), t)
    whole(z) = foreign(z[1:n], z[(n + 1):(n + np)], z[end])
    write_to(jac, ForwardDiff.jacobian(whole, z))
    return nothing
end
