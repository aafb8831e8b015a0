{{/* Name of the API's objects and prefix of all others. "-executor", "-check" or "-backup" fits behind it: the name of a CronJob
     has 52 characters at most. */}}
{{- define "workflow-api.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of the objects of a component. The API has the plain name. */}}
{{- define "workflow-api.componentName" -}}
{{- $name := include "workflow-api.fullname" .root -}}
{{- if eq .component "api" -}}{{ $name }}{{- else -}}{{ printf "%s-%s" $name .component }}{{- end -}}
{{- end -}}

{{/* Labels that select the pods of the release. */}}
{{- define "workflow-api.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels that select the pods of a component. They never change. */}}
{{- define "workflow-api.selectorLabels" -}}
{{ include "workflow-api.releaseLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of the objects of a component; without a component, of objects of the whole release. */}}
{{- define "workflow-api.labels" -}}
{{ include "workflow-api.releaseLabels" .root }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "workflow-api.serviceAccountName" -}}
{{- $default := ternary (include "workflow-api.fullname" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end -}}

{{/* Text of a setting. Large numbers of a values file are floating-point numbers and would become 2.1e+09. */}}
{{- define "workflow-api.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ printf "%.0f" . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}

{{/* Settings of API and executors as YAML, with those that the chart sets. */}}
{{- define "workflow-api.config" -}}
{{- $config := dict "API_PORT" "8000" "MANAGEMENT_PORT" "9464" "METRICS_ACCESS" "management" -}}
{{- range $name, $value := .Values.config -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $config $name (include "workflow-api.text" $value) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not (hasKey $config "PUBLIC_URL")) -}}
{{- $host := (first .Values.ingress.hosts).host -}}
{{- $secure := list -}}
{{- range .Values.ingress.tls -}}{{- $secure = concat $secure (.hosts | default list) -}}{{- end -}}
{{- $_ := set $config "PUBLIC_URL" (printf "%s://%s" (ternary "https" "http" (has $host $secure)) $host) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Settings from secrets as YAML: a list of name, secret and key. */}}
{{- define "workflow-api.secrets" -}}
{{- $root := .root -}}
{{- $secrets := list -}}
{{- range $name, $source := .keys -}}
{{- if $source -}}
{{- $secret := contains "/" $source | ternary (dir $source) $root.Values.existingSecret -}}
{{- $secrets = append $secrets (dict "name" $name "secret" $secret "key" (base $source)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $secrets -}}
{{- end -}}

{{/* Environment variable with a value of a secret. */}}
{{- define "workflow-api.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end -}}

{{/* Smallest number of pods of a component. */}}
{{- define "workflow-api.minReplicas" -}}
{{- if .autoscaling.enabled -}}{{ int .autoscaling.minReplicas }}{{- else -}}{{ int .replicas }}{{- end -}}
{{- end -}}

{{/* Refuses values that values.schema.json cannot refuse. */}}
{{- define "workflow-api.check" -}}
{{- $values := .Values -}}
{{- range $name := list "DATABASE_URL" "KAFKA_BROKERS" -}}
{{- $isInConfig := hasKey $values.config $name | ternary (get $values.config $name) "" -}}
{{- $isInSecret := hasKey $values.secretKeys $name | ternary (get $values.secretKeys $name) "" -}}
{{- if not (or $isInConfig $isInSecret) -}}
{{- fail (printf "%s is required: set config.%s or secretKeys.%s" $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $source := $values.secretKeys -}}
{{- if and $source (hasKey $values.config $name) -}}
{{- fail (printf "%s is in config and in secretKeys: remove one of them (secretKeys.%s: null)" $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $config := list $values.config $values.api.config $values.executor.config -}}
{{- if regexMatch "://[^/?#]*:[^/?#]*@|[?&]password=" (get $config "DATABASE_URL" | default "" | toString) -}}
{{- fail "DATABASE_URL in config has a password, which the ConfigMap would show: use a secret and secretKeys" -}}
{{- end -}}
{{- end -}}
{{- range $component := list "api" "executor" -}}
{{- $of := get $values $component -}}
{{- if $of.autoscaling.enabled -}}
{{- if gt (int $of.autoscaling.minReplicas) (int $of.autoscaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling: minReplicas must not be above maxReplicas" $component) -}}
{{- end -}}
{{- if not (dig "requests" "cpu" "" ($of.resources | default dict)) -}}
{{- fail (printf "%s.autoscaling needs %s.resources.requests.cpu" $component $component) -}}
{{- end -}}
{{- end -}}
{{- range $name := keys $of.config -}}
{{- if get $values.secretKeys $name -}}
{{- fail (printf "%s is in %s.config and in secretKeys: remove one of them" $name $component) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.serviceMonitor.enabled (eq (toString (get $values.config "ENABLE_METRICS") | lower) "false") -}}
{{- fail "serviceMonitor needs metrics: remove config.ENABLE_METRICS" -}}
{{- end -}}
{{- end -}}
