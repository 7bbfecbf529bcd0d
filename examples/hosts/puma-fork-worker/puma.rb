# frozen_string_literal: true

require_relative "../prefork_cache"

bind "tcp://127.0.0.1:#{ENV.fetch("PORT")}"
workers 4
threads 1, 4
fork_worker 0
on_worker_boot { warn PreforkCache.after_fork } # the one line
