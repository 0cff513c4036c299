# Julia expressions for a program's kernels: loops over fixed sizes, whole vectors at a time.

"What the expression of one place in a loop nest depends on."
struct Place
    T::DataType
    vector::Int  # the dimension in lanes, or 0
    width::Int
    blocked::Int
    row::Int  # which row of the block
end
lanes(at::Place) = at.vector == 0 ? at.T : Lanes{at.width, at.T}

index(d) = Symbol(:i, d)
memory(buffer) = Symbol(:p, buffer)
held(at::Place) = Symbol(at.vector == 0 ? :held : :lane, at.row)

"The number of an element: offset + Σ stride · index."
function position(a::Access, at::Place)
    parts, offset = Any[], a.offset
    for (d, stride) in enumerate(a.strides)
        stride == 0 && continue
        push!(parts, stride == 1 ? index(d) : :($(index(d)) * $stride))
        d == at.blocked && (offset += stride * at.row)
    end
    isempty(parts) && return offset
    push!(parts, offset)
    return Expr(:call, +, parts...)
end

function value(a::Access, at::Place)
    p, i = memory(a.buffer), position(a, at)
    stride = at.vector == 0 ? 0 : a.strides[at.vector]
    stride == 0 && return :($load($(at.T), $p, $i))
    stride == 1 && return :($load($(lanes(at)), $p, $i))
    return :($gather($(lanes(at)), $p, $i, $stride))
end
value(c::Literal, at::Place) = at.T(c.value)
value(::Time, at::Place) = :t
value(::Sum, at::Place) = held(at)
function value(c::Call, at::Place)
    args = [value(x, at) for x in c.args]
    c.op === :add && c.args[1] isa Call && c.args[1].op === :mul &&
        return Expr(:call, muladd, args[1].args[2:3]..., args[2])
    first = c.args[1]
    c.op === :where && first isa Call && haskey(CHOICES, first.op) &&
        return Expr(:call, CHOICES[first.op], args[1].args[2:3]..., args[2:3]...)
    return Expr(:call, OPERATIONS[c.op], args...)
end

"Write a value where the loop's result belongs."
function put(out::Access, x, at::Place)
    p, i = memory(out.buffer), position(out, at)
    at.vector == 0 && return :($store($p, $i, $x))
    stride = out.strides[at.vector]
    x = :($splat($(lanes(at)), $x))
    return stride == 1 ? :($store($p, $i, $x)) : :($scatter($p, $i, $stride, $x))
end

"A loop of a fixed number of turns."
function turns(d, size, body; from = 0, step = 1)
    i = index(d)
    size - from <= step && return quote
            let $i = $from
                $body
            end
        end
    return quote
        let $i = $from
            while $i < $size
                $body
                $i += $step
            end
        end
    end
end

"""
Whole vectors along a dimension; the last one overlaps the one before where they do not fit, and is shorter where
half of it or less would be enough. `body(k)` is that of a loop with vectors as long as `k`'s.
"""
function vectors(k::Loop, body)
    d, size, width = k.vector, k.sizes[k.vector], k.width
    rest = size % width
    rest == 0 && return turns(d, size, body(k); step = width)
    last = max(nextpow(2, rest), 2)
    if 2 * last <= width
        short = Loop(
            k.sizes, k.reduced, k.reduction, d, last, k.blocked, k.block, k.out, k.term, k.post,
        )
        end_at = size - last
        whole = turns(d, size - rest, body(k); step = width)
        return Expr(:block, whole, turns(d, size, body(short); from = end_at, step = last))
    end
    i, from = index(d), gensym(:from)
    return quote
        let $from = 0
            while $from < $size
                let $i = min($from, $(size - width))
                    $(body(k))
                end
                $from += $width
            end
        end
    end
end

"Loops over outputs around `body(k, rows)`, where `rows` of the blocked dimension are done at once."
function outputs(k::Loop, body)
    whole = 1:(length(k.sizes) - k.reduced)
    inner(rows) = k.vector in whole ? vectors(k, k -> body(k, rows)) : body(k, rows)
    if k.blocked == 0
        code = inner(1)
    else
        size, block = k.sizes[k.blocked], k.block
        full = size - size % block
        parts = [turns(k.blocked, full, inner(block); step = block)]
        full < size && push!(parts, turns(k.blocked, size, inner(size - full); from = full, step = block))
        code = Expr(:block, parts...)
    end
    for d in reverse(whole)
        d == k.vector || d == k.blocked || (code = turns(d, k.sizes[d], code))
    end
    return code
end

function emit(k::Loop, T)
    k.reduced == 0 && return outputs(k, (k, rows) -> mapped(k, T, rows))
    along = k.vector > length(k.sizes) - k.reduced
    return outputs(k, (k, rows) -> along ? inner_sum(k, T, rows) : outer_sum(k, T, rows))
end

mapped(k::Loop, T, rows) = Expr(:block, map(0:(rows - 1)) do row
    at = Place(T, k.vector, k.width, k.blocked, row)
    put(k.out, value(k.post, at), at)
end...)

start(k::Loop, T) =
    T(k.reduction === :add ? 0 : k.reduction === :mul ? 1 : k.reduction === :maximum ? -Inf : Inf)

"One more term of a reduction."
function taken(k::Loop, at::Place)
    so_far, x = held(at), k.term
    if k.reduction === :add && x isa Call && x.op === :mul
        a, b = [value(y, at) for y in x.args]
        return :($so_far = $(Expr(:call, muladd, a, b, so_far)))
    end
    return :($so_far = $(Expr(:call, OPERATIONS[k.reduction], so_far, value(x, at))))
end

"Reduced dimensions are loops; each lane is another output."
function outer_sum(k::Loop, T, rows)
    at = [Place(T, k.vector, k.width, k.blocked, row) for row in 0:(rows - 1)]
    body = Expr(:block, (taken(k, a) for a in at)...)
    for d in length(k.sizes):-1:(length(k.sizes) - k.reduced + 1)
        body = turns(d, k.sizes[d], body)
    end
    first = [:($(held(a)) = $(splat(lanes(a), start(k, T)))) for a in at]
    last = [put(k.out, value(k.post, a), a) for a in at]
    return local_block(at, first, body, last)
end

"A reduced dimension is in lanes, which are summed at the end; what is left over is summed apart."
function inner_sum(k::Loop, T, rows)
    at = [Place(T, k.vector, k.width, k.blocked, row) for row in 0:(rows - 1)]
    alone = [Place(T, 0, 1, k.blocked, row) for row in 0:(rows - 1)]
    size = k.sizes[k.vector]
    full = size - size % k.width
    others(body) = foldl((code, d) -> turns(d, k.sizes[d], code), reduced_but_vector(k); init = body)
    first = [:($(held(a)) = $(splat(lanes(a), start(k, T)))) for a in at]
    body = others(turns(k.vector, full, Expr(:block, (taken(k, a) for a in at)...); step = k.width))
    folds = [:($(held(b)) = $(Expr(:call, total, held(a)))) for (a, b) in zip(at, alone)]
    rest = full == size ? nothing :
        others(turns(k.vector, size, Expr(:block, (taken(k, a) for a in alone)...); from = full))
    last = [put(k.out, value(k.post, a), a) for a in alone]
    return local_block([at; alone], first, body, [folds..., rest, last...])
end

reduced_but_vector(k::Loop) =
    [d for d in length(k.sizes):-1:(length(k.sizes) - k.reduced + 1) if d != k.vector]

function local_block(at, first, body, last)
    locals = [:(local $(held(a))) for a in at]
    return Expr(:let, Expr(:block), Expr(:block, locals..., first..., body, last...))
end

# BLAS knows columns: C^T = B^T A^T there
function emit(k::Product, T)
    p, q, r = memory(k.a.buffer), memory(k.b.buffer), memory(k.c.buffer)
    (am, ak, ab), (bk, bn, bb), (cm, _, cb) = k.a.strides, k.b.strides, k.c.strides
    left, ldb = bn == 1 ? ('N', bk) : ('T', bn)
    right, lda = ak == 1 ? ('N', am) : ('T', ak)
    call = :(
        $multiply(
            $(UInt8(left)), $(UInt8(right)), $(k.n), $(k.m), $(k.k),
            $q + (i1 * $bb + $(k.b.offset)) * $(sizeof(T)), $(max(ldb, 1)),
            $p + (i1 * $ab + $(k.a.offset)) * $(sizeof(T)), $(max(lda, 1)),
            $r + (i1 * $cb + $(k.c.offset)) * $(sizeof(T)), $(max(cm, 1)),
        )
    )
    return turns(1, k.batch, call)
end

for (T, name) in ((Float32, :sgemm_), (Float64, :dgemm_))
    @eval function multiply(
            left, right, m, n, k, a::Ptr{$T}, lda, b::Ptr{$T}, ldb, c::Ptr{$T}, ldc,
        )
        ccall(
            (BLAS.@blasfunc($name), BLAS.libblastrampoline), Cvoid,
            (
                Ref{UInt8}, Ref{UInt8}, Ref{BlasInt}, Ref{BlasInt}, Ref{BlasInt},
                Ref{$T}, Ptr{$T}, Ref{BlasInt}, Ptr{$T}, Ref{BlasInt}, Ref{$T}, Ptr{$T},
                Ref{BlasInt}, Clong, Clong,
            ),
            left, right, m, n, k, one($T), a, lda, b, ldb, zero($T), c, ldc, 1, 1,
        )
        return nothing
    end
end

function emit(k::Move, T)
    x, out, table = memory(k.x.buffer), memory(k.out.buffer), k.index
    from, to = gensym(:from), gensym(:to)
    at(a::Access, j) = :(i1 * $(a.strides[1]) + $j * $(a.strides[2]) + i3 * $(a.strides[3]) + $(a.offset))
    moved = k.adds ? (:i2, :($table[i2 + 1])) : (:($table[i2 + 1]), :i2)
    found = :($load($T, $x, $from))
    found = k.adds ? :($load($T, $out, $to) + $found) : found
    body = quote
        let $from = $(at(k.x, moved[1])), $to = $(at(k.out, moved[2]))
            $store($out, $to, $found)
        end
    end
    moves = turns(1, k.outer, turns(2, length(table), turns(3, k.inner, body)))
    k.adds || return moves
    zeros = turns(1, k.size, :($store($out, i1 + $(k.out.offset), $(T(0)))))
    return Expr(:block, zeros, moves)
end
