# Where arrays live: states, cotangents and what is kept are made by `zeros_at`, `copy` and `similar`.

"The memory of this process."
struct Host end

"""
    place(Val(kind), index)

Where Python's arrays live: `:cpu`, or `:cuda` with a device's number where CUDA.jl is loaded. A place
has the methods of `zeros_at`, `wrap`, `settle` and `inside` that `Host` has here.
"""
place(::Val{:cpu}, index) = Host()

"Zeros there."
zeros_at(::Host, T, dims...) = zeros(T, dims...)

"An array at an address there; its memory stays its owner's."
wrap(::Host, T, at, dims...) = unsafe_wrap(Array, Ptr{T}(at), dims)

"Wait until all that was asked of arrays there is done: before another's code reads or writes them."
settle(::Host) = nothing

"`work()`, with arrays made there."
inside(work, ::Host) = work()
