const CASES = [
    ("backsolve", (;)), ("interpolating", (;)), ("gauss", (;)), ("quadrature", (;)),
    ("interpolating", (keep = "slots", slots = 6)), ("gauss", (keep = "slots", slots = 6)),
]

@testset "gradient $name $adjoint $kept" for name in ("Tsit5", "DP5", "Vern7", "Vern9"),
        (adjoint, kept) in CASES

    _, found = answer(adjoint, name; kept...)
    @test found.report.code == "Success"
    @test relative(found.λ, DU0) < 2e-9
    @test relative(found.p, DP) < 2e-9
end

@testset "the field's own vjps are called, and nothing else" begin
    answer("interpolating", "Tsit5")
    @test calls(:fused) > 0
    @test calls(:jac) == 0
    @test calls(:f) == calls(:fused)  # inside the fused ones
    answer("gauss", "Tsit5")
    @test calls(:vjp) > 0 && calls(:vjp_p) > 0
    @test calls(:f) == 0
    answer("gauss", "Tsit5"; keep = "slots", slots = 4)
    @test calls(:f) > 0  # solved again between checkpoints
end

const SLOTS = (keep = "slots", slots = 6)

@testset "implicit $name $adjoint $kept" for (name, adjoint, kept) in [
        ("Rodas5P", "interpolating", (;)), ("Rodas5P", "interpolating", SLOTS),
        ("Rodas5P", "gauss", (;)), ("Rodas5P", "gauss", SLOTS), ("Rodas5P", "quadrature", (;)),
        ("KenCarp4", "interpolating", (;)), ("KenCarp4", "interpolating", SLOTS),
        ("KenCarp4", "gauss", (;)), ("KenCarp4", "gauss", SLOTS), ("KenCarp4", "quadrature", (;)),
    ]
    _, found = answer(adjoint, name; tol = 1e-8, kept...)
    @test relative(found.λ, DU0) < 1e-7
    @test relative(found.p, DP) < 1e-7
    @test calls(:jac) > 0
end

@testset "float32 $adjoint" for (adjoint, kept) in CASES
    _, found = answer(adjoint, "Tsit5"; T = Float32, tol = 1e-5, kept...)
    @test found.p isa Vector{Float32}
    @test relative(found.p, DP) < 1e-3
end

@testset "drift is measured at every output, and the state reset" begin
    _, found = answer("backsolve", "Tsit5")
    @test length(found.drift) == 2
    _, loose = answer("backsolve", "Tsit5"; resync = false)
    @test loose.drift[1] == found.drift[1]
    @test loose.drift[2] != found.drift[2]
end

@testset "Gauss: an estimate, and an interpolant that is checked" begin
    _, found = answer("gauss", "Tsit5")
    @test found.estimate <= 1
    field = lv()
    fwd = forward(field, [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "dense")
    sum = PyODE.GaussSum(field, fwd.traj, algorithm("Tsit5"), options())
    broken = Broken([1.0, 1.0], [3.0, 3.0], 0.5, 0.7)
    @test_throws PyODE.InterpolantBroken PyODE.check_interpolant(sum, broken)
    # a step of two units of rounding of its time may be missed by as much
    short = Broken([1.0, 1.0], [3.0, 3.0], 60.0, 60.0 + 2eps(60.0))
    @test PyODE.check_interpolant(sum, short) === nothing
    # a step size that is not the step's is the fault itself, even where nothing is missed yet
    right = Broken([2.0, 2.0], [3.0, 3.0], 0.5, 0.7)
    @test PyODE.check_interpolant(sum, right) === nothing
    overwritten = Broken([2.0, 2.0], [3.0, 3.0], 0.5, 0.7, -0.21)
    @test_throws PyODE.InterpolantBroken PyODE.check_interpolant(sum, overwritten)
end

@testset "a derivative in time stays in its interval" begin
    fwd = forward(
        lv(), [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "slots", slots = 6,
    )
    low, high = fwd.traj.times[3], fwd.traj.times[4]
    curve(du, u, p, t) = (fwd.traj(zeros(2), t); du .= (sin(t), t^2); nothing)
    tgrad = PyODE.AdjointTgrad(curve, fwd.traj, 2)
    dT = zeros(2)
    fwd.traj(zeros(2), (low + high) / 2)
    part = fwd.traj.part
    for t in (low, (low + high) / 2, high)
        tgrad(dT, [0.0, 0.0], nothing, t)
        @test relative(dT, [cos(t), 2t]) < 1e-8
    end
    @test fwd.traj.part === part
end
