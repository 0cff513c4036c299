# How a solve ended, in one struct for both directions.

"""
    Report

How one direction ended: `code` is SciML's retcode by name, `OutOfTime`, or `Quadrature`;
`t` the time reached, `dt` the step size then, `top` the largest |u| (or |λ|) then; `forced` of the accepted
steps were above the tolerance, the worst by a factor of `worst`.
"""
Base.@kwdef struct Report
    code::String
    t::Float64
    dt::Float64
    top::Float64
    accepted::Int
    rejected::Int
    bytes::Int = 0
    forced::Int = 0
    worst::Float64 = 0.0
end

ok(report::Report) = report.code == "Success"

with_bytes(r::Report, bytes) =
    Report(; r.code, r.t, r.dt, r.top, r.accepted, r.rejected, bytes, r.forced, r.worst)

# SciML returns a retcode where others throw: it is looked at here, and nowhere else.
function report(integ, sign, code = string(integ.sol.retcode))
    stats = integ.sol.stats
    ended = integ.t == integ.sol.prob.tspan[2]
    if code == "Success" && !ended
        code = "Unfinished"
    elseif code == "Default" && ended
        code = "Success"
    end
    code == "Success" && !all(isfinite, integ.u) && (code = "Unstable")
    top = isempty(integ.u) ? 0.0 : Float64(maximum(abs, integ.u))
    count, worst = forced(integ)
    return Report(;
        code, t = Float64(sign * integ.t), dt = Float64(integ.dt), top,
        accepted = stats.naccept, rejected = stats.nreject, forced = count, worst,
    )
end

"Run an integrator to its end; only `OutOfTime` is an outcome, every other exception goes on."
function run!(integ, sign)
    try
        solve!(integ)
    catch err
        err isa OutOfTime || rethrow()
        return report(integ, sign, "OutOfTime")
    end
    return report(integ, sign)
end
