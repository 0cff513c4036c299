"""
States on a CUDA device, in memory that Python's tensors share: this file is all that knows of CUDA.
"""
module PyODECUDAExt

using CUDA: CUDA, CuArray, CuPtr
using PyODE: PyODE

"The memory of one CUDA device, by its number."
struct Cuda
    index::Int
end

PyODE.place(::Val{:cuda}, index) = Cuda(index)

PyODE.zeros_at(::Cuda, T, dims...) = CUDA.zeros(T, dims...)

# torch's memory is a device's own, and stays torch's: it is not freed here
PyODE.wrap(::Cuda, T, at, dims...) =
    unsafe_wrap(CuArray{T, length(dims), CUDA.DeviceMemory}, CuPtr{T}(UInt(at)), dims)

# This task's stream is not torch's, and neither waits for the other: the host waits for this one
# before torch's code runs, and torch's is waited for there. Blocking, as there are no other tasks.
PyODE.settle(::Cuda) = CUDA.synchronize(; blocking = true)

function PyODE.inside(work, place::Cuda)
    return CUDA.device!(place.index) do
        try
            work()
        finally
            PyODE.settle(place)  # torch may free or reuse what was wrapped
        end
    end
end

end
