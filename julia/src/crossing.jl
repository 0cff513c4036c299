# Calls as C functions of addresses: a call through the caller's language's wrappers looks up types as it runs, and
# costs as much as some steps of a small solve.

"What a caller elsewhere holds by its address."
const HELD = Dict{Ptr{Cvoid}, Any}()
"The exception that a call ended with, and where from; how a backward solve ended."
const RAISED, ENDED = Ref{Any}(nothing), Ref{Any}(nothing)
const WELL, CHANGED, NOT_FINITE, RAISES, OTHERWISE = 0, 0, -1, -2, 1

at_address(address) = unsafe_pointer_to_objref(Ptr{Cvoid}(address))
"The address of a `Field`, a `Ready` or a `Pulling` that the caller holds."
address_of(x) = Int(UInt(pointer_from_objref(x)))

"""
`forward_at`, of addresses.

Returns: that of a `Held`, until `release`; or `CHANGED`, `NOT_FINITE`, or `RAISES`.
"""
function cross_forward(field::Ptr{Cvoid}, ready::Ptr{Cvoid}, at::Int, deadline::Float64)::Int
    try
        held = forward_at(at_address(field), at_address(ready), at, deadline)
        held === nothing && return CHANGED
        held === false && return NOT_FINITE
        address = pointer_from_objref(held)
        HELD[address] = held
        return Int(UInt(address))
    catch err
        RAISED[] = (err, catch_backtrace())
        return RAISES
    end
end

"""
`gradient_at`, of addresses.

Returns: `WELL`, `OTHERWISE` with what `ended()` gives, or `RAISES`.
"""
function cross_gradient(held::Ptr{Cvoid}, pulling::Ptr{Cvoid}, at::Int, deadline::Float64)::Int
    try
        ended = gradient_at(at_address(held), at_address(pulling), at, deadline)
        ended === nothing && return WELL
        ENDED[] = ended
        return OTHERWISE
    catch err
        RAISED[] = (err, catch_backtrace())
        return RAISES
    end
end

cross_release(held::Ptr{Cvoid})::Cvoid = (delete!(HELD, held); nothing)

"The addresses of the three."
crossings() = (
    Int(@cfunction(cross_forward, Int, (Ptr{Cvoid}, Ptr{Cvoid}, Int, Float64))),
    Int(@cfunction(cross_gradient, Int, (Ptr{Cvoid}, Ptr{Cvoid}, Int, Float64))),
    Int(@cfunction(cross_release, Cvoid, (Ptr{Cvoid},))),
)

"What was kept, which is forgotten."
raised() = (found = RAISED[]; RAISED[] = nothing; found)
ended() = (found = ENDED[]; ENDED[] = nothing; found)

# the other calls of a `Held`, by its address
words(held::Int, last) = words(at_address(held), last)
changed(held::Int, prepare) = changed(at_address(held), prepare)
interpolate_at(held::Int, t, at, deadline) = interpolate_at(at_address(held), t, at, deadline)
