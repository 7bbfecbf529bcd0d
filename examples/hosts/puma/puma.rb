# frozen_string_literal: true

bind "tcp://127.0.0.1:#{ENV.fetch("PORT")}"
workers 4
threads 1, 4
preload_app!
on_worker_boot { warn PreforkCache.after_fork } # the one line
