# What a path reaches in Rack, and the variables that it makes of headers: Rack's own map first, which compares the path as
# it came, then a match of the decoded path, as Rails and Sinatra do it.
named = lambda { |name| lambda { |_| [200, { "content-type" => "text/plain", "content-length" => name.bytesize.to_s }, [name]] } }

map("/api/login") { run named["login"] }
map("/health") { run named["health"] }
map("/metrics") { run named["metrics"] }
map "/variables" do
  run lambda { |env|
    text = env.select { |name, _| name.start_with?("HTTP_") }.map { |name, value| "#{name}=#{value}\n" }.join
    [200, { "content-type" => "text/plain", "content-length" => text.bytesize.to_s }, [text]]
  }
end
run lambda { |env|
  path = Rack::Utils.unescape_path(env["PATH_INFO"]).b
  name =
    case path.chomp("/")
    when "/api/login" then "login"
    when %r{\A/items/[^/]+/export\z}n then "export"
    when %r{\A/items/[^/]+\z}n then "item"
    when %r{\A/files/}n then "files"
    when "/health" then "health"
    when "/metrics" then "metrics"
    else "other"
    end
  [200, { "content-type" => "text/plain", "content-length" => name.bytesize.to_s }, [name]]
}
