# Without Python: PyODE as a Julia package. `julia --project=julia -e 'using Pkg; Pkg.test()'`
using PyODE
using Test

@testset "PyODE" begin
    include("test_workload.jl")
    include("problems.jl")
    include("test_forward.jl")
    include("test_hermite.jl")
    include("test_gradient.jl")
    include("test_failures.jl")
    include("test_native.jl")
    include("test_discrete.jl")
    if Base.find_package("JLArrays") === nothing
        @info "test_device.jl is skipped: JLArrays is not in this environment"
    else
        include("test_device.jl")
    end
end
