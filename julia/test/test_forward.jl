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

@testset "tolerances of each entry, $name" for name in
    ("Tsit5", "DP5", "BS3", "Vern7", "Rodas5P", "KenCarp4", "TRBDF2", "Kvaerno5", "QNDF", "FBDF")

    units = [1.0, 2.0^-30]  # powers of two: exact
    function scaled!(du, u, t)
        lv!(du, u ./ units, t)
        du .*= units
        return nothing
    end
    scaled_jac!(J, u, t) = (lv_jac!(J, u ./ units, t); J .= units .* J ./ units'; nothing)
    field = Field{Float64}(; f! = scaled!, jac! = scaled_jac!, tgrad! = lv_tgrad!, n = 2, np = 0)
    tols = (; reltol = 1.0e-6, abstol = 1.0e-8)
    each = (; reltol = fill(1.0e-6, 2), abstol = 1.0e-8 .* units)
    for keep in ("dense", "outputs", "slots")
        solves = map(((lv(), ones(2), tols), (field, units, each))) do (f, u0, tols)
            set = Options{Float64}(; tols..., maxiters = 10_000)
            forward(f, u0, [0.0, 0.4, 1.0], algorithm(name), set; keep, slots = 4)
        end
        plain, other = solves
        @test other.report.accepted == plain.report.accepted
        @test other.report.rejected == plain.report.rejected
        @test other.states ./ units ≈ plain.states rtol = 1e-10
        @test PyODE.interpolate(other, 0.7) ./ units ≈ PyODE.interpolate(plain, 0.7) rtol = 1e-10
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
    (; times, states, steps) = fwd.traj
    @test 3 <= length(times) <= 5
    @test times[1] == 0.0
    @test times[end] == 1.0
    @test [0.0; steps] == whole.traj.times
    @test all(i -> states[i] == whole.traj.states[times[i] .== whole.traj.times][1], 1:length(times))
end

@testset "marks hold the last steps up to given times" begin
    marks = [0.0, 0.3, 0.31, 0.8]
    fwd = forward(
        lv(), [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(); keep = "marks", marks,
    )
    (; times, states, steps) = fwd.traj
    @test marks == [0.0, 0.3, 0.31, 0.8]
    wanted = [maximum(filter(<=(m), [0.0; steps])) for m in marks]
    @test times == unique([wanted; 1.0])
    y = zeros(2)
    fwd.traj(y, times[3])
    @test relative(y, states[3]) < 1e-13
end

@testset "an interval solved again is the same, to rounding" for name in ("Tsit5", "Vern9", "RK4")
    set = name == "RK4" ? options(; adaptive = false, dt = 0.01) : options()
    thin = forward(
        lv(), [1.0, 1.0], [0.0, 1.0], algorithm(name), set; keep = "slots", slots = 5,
    )
    thick = forward(lv(), [1.0, 1.0], [0.0, 1.0], algorithm(name), set; keep = "dense")
    a, b = zeros(2), zeros(2)
    for t in (0.97, 0.5, 0.03, 0.77)
        thin.traj(a, t)
        thick.traj(b, t)
        @test relative(a, b) < 1e-14
    end
    part = thin.traj.part
    thin.traj(a, prevfloat(thin.traj.low))  # a rounding error off the interval
    @test thin.traj.part === part
end

@testset "between outputs" begin
    for keep in ("dense", "outputs", "slots")
        fwd = forward(
            lv(), [1.0, 1.0], [0.0, 2.0], algorithm("Vern9"), options(); keep, slots = 4,
        )
        @test relative(PyODE.interpolate(fwd, 1.0), Y1) < 1e-8
    end
end
