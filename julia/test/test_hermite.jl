wave(t) = ([sin(t), exp(-t)], [cos(t), -exp(-t)])

@testset "a polynomial through states and derivatives is of order 2m" begin
    errors = map((0.4, 0.2)) do h
        hermite = PyODE.Hermite{Float64}(2)
        PyODE.begin!(hermite, 0.0, wave(0.0)..., h, wave(h)...)
        y = zeros(2)
        map((-h, 2h, nothing)) do next
            hermite(y, h / 3)
            next === nothing || PyODE.add!(hermite, next, wave(next)...)
            return maximum(abs, y - wave(h / 3)[1])
        end
    end
    @test all(log2.(errors[1] ./ errors[2]) .> (3.8, 5.7, 7.6))
end

struct Steps
    t::Vector{Float64}
    u::Vector{Vector{Float64}}
    k::Vector{Vector{Vector{Float64}}}
end
function steps(times, wave = wave)
    k = [[wave(times[max(i - 1, 1)])[2], wave(times[i])[2]] for i in eachindex(times)]
    return Steps(times, [wave(t)[1] for t in times], k)
end

@testset "dense output through several steps, either way in time" begin
    times = [0.0, 0.1, 0.25, 0.4, 0.5, 0.7]
    for order in (times, reverse(times))
        smooth = PyODE.Smooth(steps(order), Float64[])
        y = zeros(2)
        for t in 0.0:0.05:0.7
            smooth(y, t)
            @test maximum(abs, y - wave(t)[1]) < 1e-9
        end
    end
end

@testset "no polynomial reaches over a kink" begin
    kink(t) = t <= 0.5 ? ([t^3], [3t^2]) : ([0.125 + (t - 0.5)], [1.0])
    times = collect(0.0:0.1:1.0)
    times[6] = 0.5
    sol = steps(times, kink)
    sol.k[7][1][1] = 1.0  # the derivative on the right
    y = zeros(1)
    for breaks in ([0.5], [0.1, 0.5, 0.9])
        smooth = PyODE.Smooth(sol, breaks)
        for t in (0.03, 0.45, 0.5, 0.55, 0.97)
            smooth(y, t)
            @test abs(y[1] - kink(t)[1][1]) < 1e-12
        end
    end
    across = PyODE.Smooth(sol, Float64[])
    across(y, 0.45)
    @test abs(y[1] - kink(0.45)[1][1]) > 1e-6
end

@testset "states too near or too far are left out" begin
    far = PyODE.Smooth(steps([0.0, 1.0e-6, 0.1, 0.2, 50.0]), Float64[])
    far(zeros(2), 0.15)
    @test far.hermite.m == 3  # 0.1, 0.2, 1e-6
end

@testset "Kvaerno5 is of order 5 where f depends on time, and KenCarp4 of order 4" begin
    f!(du, y, t) = (du[1] = cos(3t) * y[1]; nothing)
    jac!(J, y, t) = (J[1] = cos(3t); nothing)
    field = Field{Float64}(; f!, jac!, n = 1, np = 0)
    for (name, order) in (("Kvaerno5", 5), ("KenCarp4", 4), ("TRBDF2", 2))
        errors = map((1 / 20, 1 / 40)) do dt
            o = Options{Float64}(; reltol = 1e-12, abstol = 1e-13, adaptive = false, dt, maxiters = 99)
            fwd = forward(field, [1.0], [0.0, 1.0], algorithm(name), o)
            return abs(fwd.states[end] - exp(sin(3.0) / 3))
        end
        @test log2(errors[1] / errors[2]) > order - 0.3
    end
end
