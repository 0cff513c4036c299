@testset "forward $name" for (name, tol) in [
        ("Tsit5", 1e-8), ("DP5", 1e-8), ("BS3", 1e-6), ("Vern7", 1e-8), ("Vern9", 1e-8),
        ("Rodas5P", 1e-6), ("KenCarp4", 1e-5), ("FBDF", 1e-4),
    ]
    for keep in ("dense", "outputs", "slots")
        set = options(; tol = 1e-9)
        fwd = forward(lv(), [1.0, 1.0], [0.0, 1.0], algorithm(name), set; keep, slots = 4)
        @test fwd.report.code == "Success"
        @test relative(fwd.states[:, end], Y1) < tol
    end
end

@testset "time reversed" begin
    # du/dt = f backwards from y(1) to y(0), as s = -t
    fwd = forward(lv(; sign = -1), Y1, [-1.0, 0.0], algorithm("Tsit5"), options())
    @test relative(fwd.states[:, end], [1.0, 1.0]) < 1e-8
end

@testset "slots are thinned, and hold steps taken" begin
    fwd = forward(
        lv(), [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "slots", slots = 5,
    )
    whole = forward(lv(), [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "dense")
    @test 3 <= length(fwd.checkpoints) <= 5
    @test fwd.checkpoints[1] == 0.0
    @test fwd.checkpoints[end] == 1.0
    @test all(t -> t in whole.sol.t, fwd.checkpoints)
    @test fwd.sol.u[2] == whole.sol(fwd.checkpoints[2])
end

@testset "between outputs" begin
    for keep in ("dense", "outputs", "slots")
        fwd = forward(
            lv(), [1.0, 1.0], [0.0, 2.0], algorithm("Vern9"), options(); keep, slots = 4,
        )
        @test relative(PyODE.interpolate(fwd, 1.0), Y1) < 1e-8
    end
end
