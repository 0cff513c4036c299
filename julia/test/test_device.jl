# The whole callback path with arrays that refuse scalar indexing, as those of a GPU do: addresses go
# out to C functions and come in from the caller, nothing is read number by number.

include("standin.jl")

const NUMBER = Ref{Type}(Float64)
const WAITED = Bool[]  # by each call of f: whether the device was waited for since the last
const SEEN = Ref(0)
there(at, n = 2) = unsafe_wrap(Array, Ptr{NUMBER[]}(at), n)
waited() = (push!(WAITED, STANDIN.waits > SEEN[]); SEEN[] = STANDIN.waits)

c_f(du, u, _1, _2, _3, t) = (waited(); lv!(there(du), there(u), t); Cint(1))
c_vjp(dλ, λ, u, _1, _2, t) = (waited(); lv_vjp!(there(dλ), there(λ), there(u), t); Cint(1))
c_vjp_p(dg, λ, u, _1, _2, t) =
    (waited(); lv_vjp_p!(there(dg, 4), there(λ), there(u), t); Cint(1))
function c_fused(dλ, dg, dy, λ, u, t)
    waited()
    lv_fused!(there(dλ), there(dg, 4), there(dy), there(λ), there(u), t)
    return Cint(1)
end
c_fails(du, u, _1, _2, _3, t) = Cint(0)

macro c(name)
    types = :((Int64, Int64, Int64, Int64, Int64, Float64))
    return esc(:(Int(@cfunction($name, Cint, $types))))
end

"""
As a caller with addresses alone would: everything that comes back is in `ys`, `last`, `λ` and `p`. `each`: the
forward solve's tolerances are vectors.
"""
function by_address(
        kind, T, adjoint, name; keep = "dense", slots = 0, dt = 0.0, f = @c(c_f), each = false,
    )
    NUMBER[] = T
    fused = adjoint in ("backsolve", "interpolating") ? @c(c_fused) : 0
    tol = T == Float64 ? 1.0e-10 : 1.0e-5
    place = PyODE.place_of(kind, 0)
    field = PyODE.field_of(
        place, lowercase(string(T)), 2, 4, 1.0, f, @c(c_vjp), @c(c_vjp_p), fused, 0, 0, 0,
    )
    u0, ts, marks, last, λ, p = T[1, 1], [0.0, 0.4, 1.0], Float64[], zeros(T, 2), zeros(T, 2), zeros(T, 4)
    ys, g, middle, told = zeros(T, 2, 3), zeros(T, 2, 3), zeros(T, 2), zeros(20 + 3)
    start = zeros(T, 2)
    control = [0.0, 1.0, 0.0, 0.9, 0.2, 10.0]
    back = [tol, tol / 100, dt == 0, dt, 0.0, 1.0, 100_000, control...]
    there = each ? [NaN, NaN, back[3:end]..., tol, tol, tol / 100, tol / 100] : back
    at(x) = Int(pointer(x))
    GC.@preserve u0 ts marks last λ start p ys g middle told there back begin
        numbers = [
            at(u0), 0, at(ts), 3, at(there), length(there), slots, at(marks), 0, at(ys), 0, at(told), 0, 0, 0,
        ]
        held = GC.@preserve numbers PyODE.forward_at(field, name, keep, at(numbers), Inf)
        @test told[1] == 1
        @test PyODE.words(held, at(last)) == ("Success", "")
        g[:, 3] = ys[:, 3] .- 1
        pieces = [at(p), 1, at(p) + sizeof(T), 3]
        numbers = [at(g), at(back), length(back), at(λ), at(start), at(pieces), 2, at(told), 0]
        ended = GC.@preserve numbers pieces PyODE.gradient_at(
            held, adjoint, name, at(numbers), true, false, tol, tol / 100, Inf,
        )
        @test ended === nothing
        @test start == λ + g[:, 1] && told[19] == 1
        PyODE.interpolate_at(held, 0.4, at(middle), Inf)
        return (; held.fwd, ys, last, λ, p, middle)
    end
end

@testset "on a device: $name $adjoint $kept $T" for T in (Float64, Float32),
        (name, dt) in (T == Float64 ? (("Tsit5", 0.0), ("Vern9", 0.0), ("RK4", 0.02)) : (("Tsit5", 0.0),)),
        (adjoint, kept) in [
            ("backsolve", (keep = "outputs",)), ("interpolating", (;)), ("gauss", (;)),
            ("interpolating", (keep = "slots", slots = 6)), ("gauss", (keep = "slots", slots = 6)),
            ("quadrature", (;)),
        ]

    empty!(WAITED)
    found = by_address("standin", T, adjoint, name; dt, kept...)
    @test found.fwd.states isa JLArray{T, 2}
    @test found.fwd.last isa JLArray{T, 1}
    @test all(WAITED) && length(WAITED) > 20
    tol = T == Float32 ? 1.0e-3 : name == "RK4" ? 1.0e-6 : 2.0e-9
    @test relative(found.ys[:, 3], Y1) < tol
    @test relative(found.λ, DU0) < tol
    @test relative(found.p, DP) < tol
    @test relative(found.middle, found.ys[:, 2]) < tol
    here = by_address("cpu", T, adjoint, name; dt, kept...)
    @test relative(found.ys, here.ys) < (T == Float32 ? 1.0e-6 : 1.0e-14)
    @test relative(found.p, here.p) < (T == Float32 ? 1.0e-4 : 1.0e-10)
end

@testset "on a device: tolerances of each entry, $adjoint" for (adjoint, kept) in [
        ("backsolve", (keep = "outputs",)), ("interpolating", (keep = "slots", slots = 6)),
    ]

    one, each = (by_address("standin", Float64, adjoint, "Tsit5"; kept..., each) for each in (false, true))
    @test each.fwd.traj.options.abstol isa JLArray{Float64, 1}
    @test each.ys == one.ys
    @test each.λ ≈ one.λ rtol = 1e-12
end

@testset "on a device: failures" begin
    @test_throws PyODE.CallFailed by_address("standin", Float64, "gauss", "Tsit5"; f = @c(c_fails))
    nan!(du, u, t) = (du .= t > 0.5 ? NaN : 1.0; nothing)
    field = Field{Float64}(; f! = nan!, n = 2, np = 0, place = STANDIN)
    u0 = PyODE.zeros_at(STANDIN, Float64, 2)
    fwd = forward(field, u0, [0.0, 1.0], algorithm("Tsit5"), options(; maxiters = 1000))
    @test fwd.report.code != "Success"
    @test (field.trouble.what, field.trouble.index, field.trouble.count) == ("f", 1, 2)
    @test all(isfinite, Array(fwd.last)) && all(isnan, Array(fwd.states)[:, 2])
    rhs(du, u, t) = (du[1] = 1.0; nothing)
    scalar = Field{Float64}(; f! = rhs, n = 2, np = 0, place = STANDIN)
    @test_throws "Scalar indexing" forward(scalar, u0, [0.0, 1.0], algorithm("Tsit5"), options())
end
