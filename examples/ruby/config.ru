# Notes, one line of a file each, with Rails' health check, /up.
require "json"

NOTES = ENV.fetch("NOTES", "notes.txt")

def count
  File.exist?(NOTES) ? File.foreach(NOTES).count : 0
end

def json(status, body)
  [status, { "content-type" => "application/json" }, [JSON.generate(body)]]
end

run lambda { |env|
  request = Rack::Request.new(env)
  case [request.request_method, request.path_info]
  when ["GET", "/api/notes"]
    json(200, notes: count, process: Process.pid)
  when ["POST", "/api/notes"]
    File.write(NOTES, "#{request.body.read}\n", mode: "a")
    json(201, notes: count, process: Process.pid)
  when ["GET", "/api/report"]
    sleep 1
    json(200, notes: count)
  when ["GET", "/up"]
    [200, { "content-type" => "text/html" }, ["<body style=\"background-color: green\"></body>"]]
  else
    json(404, error: "not found")
  end
}
