# What was compiled with the package. This file comes first: later ones compile more.

@testset "an image with nothing that Julia crashes on" begin
    @test PyODE.tracked() == 0
end

@testset "a first gradient compiles little" begin
    ahead = Base.JLOptions().use_pkgimages == 1 && Base.JLOptions().code_coverage == 0
    Base.cumulative_compile_timing(true)
    before = first(Base.cumulative_compile_time_ns())
    for T in (Float32, Float64), name in ("DP5", "Tsit5"),
            (adjoint, keep) in (("discrete", "stages"), ("interpolating", "dense"), ("gauss", "dense"))

        λ, p = PyODE.rehearse(T, name, adjoint, keep)
        @test λ ≈ exp(-0.5) + exp(-1) rtol = 5.0e-3
        @test p ≈ -0.5exp(-0.5) - exp(-1) rtol = 5.0e-3
    end
    seconds = (first(Base.cumulative_compile_time_ns()) - before) / 1.0e9
    Base.cumulative_compile_timing(false)
    ahead && @test seconds < 4  # 0.6, and 20 where nothing was compiled ahead
end

@testset "what is rehearsed compiles, $T" for T in (Float32, Float64)
    @test PyODE.rehearse_expressions(T) isa Expr
    one = PyODE.rehearse_lanes(PyODE.Lanes{4, T}, ones(T, 16))
    @test one ≈ 4 * (tanh(2) - 1) rtol = 1.0e-5
end
