# A native field's program: loops over memory, as numbers that came from Python.

"""
A value in a loop: memory read at an affine place, a constant, the time, what a reduction has
summed, or an operation on values.
"""
abstract type Term end
struct Access <: Term
    buffer::Int
    offset::Int
    strides::Vector{Int}
end
struct Literal <: Term
    value::Float64
end
struct Time <: Term end
struct Sum <: Term end
struct Call <: Term
    op::Symbol
    args::Vector{Term}
end

"""
    Loop

`out[i] = post(reduce over r of term[i, r])`, or `post` alone where nothing is reduced. The last
`reduced` of `sizes` are reduced, by `reduction` (:add, :maximum, :minimum or :mul). `vector` is the
dimension that is taken `width` at a time, `blocked` the one of which `block` rows are held at once;
0 for none.
"""
struct Loop
    sizes::Vector{Int}
    reduced::Int
    reduction::Symbol
    vector::Int
    width::Int
    blocked::Int
    block::Int
    out::Access
    term::Term
    post::Term
end

"`C = A B` by BLAS, row by row in memory, `batch` times: offsets and strides of rows, columns, batch."
struct Product
    batch::Int
    m::Int
    n::Int
    k::Int
    a::Access
    b::Access
    c::Access
end

"Rows moved by an index: `out[o, j] = x[o, index[j]]`, or added: `out[o, index[j]] += x[o, j]`."
struct Move
    adds::Bool
    outer::Int
    inner::Int
    size::Int
    index::Vector{Int}
    out::Access
    x::Access
end

"Reads a program's numbers one after another."
mutable struct Reader
    const numbers::Vector{Int}
    const constants::Vector{Float64}
    const names::Vector{Symbol}
    at::Int
end
next!(r::Reader) = (r.at += 1; r.numbers[r.at])
next!(r::Reader, n) = [next!(r) for _ in 1:n]

access(r::Reader, dims) = Access(next!(r), next!(r), next!(r, dims))

function term(r::Reader, dims)
    tag = next!(r)
    tag == 0 && return access(r, dims)
    tag == 1 && return Literal(r.constants[next!(r)])
    tag == 2 && return Time()
    tag == 3 && return Sum()
    op = r.names[next!(r)]
    return Call(op, Term[term(r, dims) for _ in 1:next!(r)])
end

function kernel(r::Reader)
    form = next!(r)
    form == 1 && return product(r)
    form == 2 && return move(r)
    sizes = next!(r, next!(r))
    reduced, reduction = next!(r), r.names[next!(r)]
    vector, width, blocked, block = next!(r, 4)
    dims = length(sizes)
    out = access(r, dims)
    return Loop(
        sizes, reduced, reduction, vector, width, blocked, block, out, term(r, dims), term(r, dims),
    )
end

product(r::Reader) = Product(next!(r, 4)..., access(r, 3), access(r, 3), access(r, 3))
move(r::Reader) =
    Move(next!(r) == 1, next!(r, 3)..., next!(r, next!(r)), access(r, 3), access(r, 3))

"The kernels of one function."
function kernels(numbers, constants, names)
    reader = Reader(numbers, constants, names, 0)
    return [kernel(reader) for _ in 1:next!(reader)]
end
