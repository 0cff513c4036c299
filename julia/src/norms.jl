# Error norms of adjoint states.

"""
    GroupNorm(groups)

The largest RMS of groups of a vector; entries in none do not control the step. The whole's
RMS would let many parameters dilute the error of few states; leaving ∂L/∂p out is the seminorm.
"""
struct GroupNorm
    groups::Vector{UnitRange{Int}}
end

(::GroupNorm)(u::Number, t) = abs(u)

function (norm::GroupNorm)(u::AbstractArray, t)
    top = zero(real(eltype(u)))
    for group in norm.groups
        isempty(group) && continue
        total = zero(top)
        @inbounds for i in group
            total += abs2(u[i])
        end
        size = sqrt(total / length(group))
        isnan(size) && return size
        top = max(top, size)
    end
    return top
end
