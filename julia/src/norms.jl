# Error norms of adjoint states.

"The sum of the squares of some entries of a vector: one after another, or as a device does it."
squares(u) = squares(u, eachindex(u))
squares(u, group) = sum(abs2, view(u, group))
function squares(u::Array, group)
    total = zero(real(eltype(u)))
    @inbounds for i in group
        total += abs2(u[i])
    end
    return total
end

"""
    GroupNorm(groups...)

The largest RMS of up to three groups of a vector; entries in none do not control the step. The whole's
RMS would let many parameters dilute the error of few states; leaving ∂L/∂p out is the seminorm.
"""
struct GroupNorm
    groups::NTuple{3, UnitRange{Int}}  # some may be empty; one type, that fits into a device's code
end
GroupNorm(a::UnitRange, b = 1:0, c = 1:0) = GroupNorm((a, b, c))
Base.broadcastable(norm::GroupNorm) = Ref(norm)

(::GroupNorm)(u::Number, t) = abs(u)

function (norm::GroupNorm)(u::AbstractArray, t)
    top = zero(real(eltype(u)))
    for group in norm.groups
        isempty(group) && continue
        size = sqrt(squares(u, group) / length(group))
        isnan(size) && return size
        top = max(top, size)
    end
    return top
end
