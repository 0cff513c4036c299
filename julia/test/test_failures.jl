@testset "outcomes are reported, never dropped" begin
    short = options(; maxiters = 3)
    fwd = forward(lv(), [1.0, 1.0], [0.0, 10.0], algorithm("Tsit5"), short; keep = "dense")
    @test fwd.report.code == "MaxIters"
    @test 0 < fwd.report.t < 10
    @test all(isnan, fwd.states[:, 2])
    @test all(isfinite, fwd.last)

    fwd, found = answer("interpolating", "Tsit5")
    g = ones(2, 3)
    found = gradient(fwd, "interpolating", g, algorithm("Tsit5"), short)
    @test found.report.code == "MaxIters"
end

@testset "NaN is noted with its time" begin
    nan!(du, u, t) = (du .= t > 0.5 ? NaN : 1.0; nothing)
    field = Field{Float64}(; f! = nan!, n = 2, np = 0)
    fwd = forward(field, [1.0, 1.0], [0.0, 1.0], algorithm("Tsit5"), options(; maxiters = 1000))
    @test fwd.report.code != "Success"
    @test field.trouble.what == "f"
    @test field.trouble.t > 0.5
    @test fwd.report.t <= 0.5
end

@testset "the clock" begin
    slow!(du, u, t) = (sleep(0.02); du .= -u; nothing)
    field = Field{Float64}(; f! = slow!, n = 1, np = 0)
    field.deadline = time() + 0.1
    fwd = forward(field, [1.0], [0.0, 1.0], algorithm("Tsit5"), options())
    @test fwd.report.code == "OutOfTime"
end

@testset "exceptions of f go through as they are" begin
    struct_error!(du, u, t) = throw(KeyError(:mine))
    field = Field{Float64}(; f! = struct_error!, n = 1, np = 0)
    @test_throws KeyError(:mine) forward(
        field, [1.0], [0.0, 1.0], algorithm("Tsit5"), options(),
    )
end
