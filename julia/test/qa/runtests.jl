# julia --project=julia/test/qa julia/test/qa/runtests.jl
using Aqua, ExplicitImports, PyODE, Test

@testset "quality" begin
    Aqua.test_all(PyODE; ambiguities = false, persistent_tasks = false)
    @test check_no_implicit_imports(PyODE) === nothing
    @test check_no_stale_explicit_imports(PyODE) === nothing
    # SciMLSensitivity's y(t), and its integrand's constructor: not public, bounded in [compat];
    # BLAS's library under the name that LinearAlgebra itself calls it by
    ours = (:GaussIntegrand, :split_states, :libblastrampoline)
    @test check_all_qualified_accesses_via_owners(PyODE; ignore = ours) === nothing
end
