# PORT comes from Outrigger. A Rails app changes the same line of its config/puma.rb.
bind "tcp://127.0.0.1:#{ENV.fetch("PORT")}"
environment "production"
threads 5, 5
# SIGTERM is how Outrigger stops it, not a failure.
raise_exception_on_sigterm false
