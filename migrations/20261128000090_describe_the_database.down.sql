DROP VIEW agent_stats, step_durations, run_overview;

DO $forget$
DECLARE
    described record;
BEGIN
    FOR described IN SELECT * FROM (VALUES
        ('agents', true, '{id,name,url,description,auth_type,auth_config,timeout_ms,retry_config,status,created_by,updated_by,created_at,updated_at,circuit_breaker_config,organization_id,kind,config}'::text[]),
        ('workflow_definitions', true, '{id,name,description,version,workflow_data,status,created_by,updated_by,created_at,updated_at,organization_id}'::text[]),
        ('workflow_steps', false, '{id,workflow_id,step_id,agent_id,next_step_id,input_mapping,step_order,created_at,updated_at}'::text[]),
        ('workflow_runs', true, '{run_id,workflow_id,workflow_name,workflow_definition_id,status,input_data,triggered_by,created_at,updated_at,completed_at,cancelled_at,cancelled_by,error_message,organization_id,parent_step_id}'::text[]),
        ('step_executions', true, '{id,run_id,step_id,step_name,agent_name,status,input_data,output_data,started_at,completed_at,error_message,parent_step_id,branch_name,join_policy}'::text[]),
        ('audit_logs', true, '{id,entity_type,entity_id,action,user_id,changes,created_at,updated_at,organization_id,entity_name,outcome,previous,key_id,address,correlation_id}'::text[]),
        ('audit_unsealed', true, '{organization_id,entry_id,entry_at}'::text[]),
        ('audit_seals', true, '{organization_id,number,sealed_at,entry_ids,entry_ats,entry_hashes,previous,hash}'::text[]),
        ('audit_retention', true, '{dropped_before}'::text[]),
        ('ai_chat_sessions', true, '{id,user_id,status,created_at,updated_at,expires_at,current_workflow,workflow_history,messages}'::text[]),
        ('organizations', true, '{id,name,status,max_agents,max_workflows,max_api_keys,max_queued_runs,created_by,updated_by,created_at,updated_at}'::text[]),
        ('api_keys', true, '{id,name,prefix,last_four,hash,role,scopes,workflows,created_at,created_by,expires_at,revoked_at,revoked_by,last_used_at,organization_id}'::text[]),
        ('circuit_breakers', true, '{agent_id,state,opened_at,calls,probes,probes_succeeded,updated_at}'::text[]),
        ('dead_letters', true, '{id,organization_id,run_id,topic,partition,record_offset,sent_at,key,value,headers,digest,bytes,reason,detail,status,corrected,resolved_by,resolved_at,created_at,copy_at,redrive_at}'::text[]),
        ('idempotency_keys', true, '{scope,key,fingerprint,created_at}'::text[]),
        ('outbox', true, '{run_id,event_id,kind,owner,cancelled_by,reason,created_at}'::text[]),
        ('monitoring_outbox', true, '{id,owner,updates,created_at}'::text[]),
        ('processes', true, '{id,role,started_at,heartbeat_at}'::text[]),
        ('run_events', true, '{id,run_id,seq,at,kind,step_id,attempt_id,agent_name,http_status,duration_ms,detail}'::text[]),
        ('run_wakes', true, '{id,run_id,created_at}'::text[]),
        ('step_waits', true, '{id,run_id,place,step_id,attempt_id,created_at,due_at,token,token_hash,approval,answered_at,answered_by,answer,child_run_id}'::text[]),
        ('service_keys', true, '{name,key,created_at}'::text[]),
        ('sub_run_counts', true, '{root_run_id,begun}'::text[])
    ) AS described (table_name, has_comment, columns)
    LOOP
        IF described.has_comment THEN
            EXECUTE format('COMMENT ON TABLE %I IS NULL', described.table_name);
        END IF;
        EXECUTE (
            SELECT string_agg(format('COMMENT ON COLUMN %I.%I IS NULL', described.table_name, name), ';')
            FROM unnest(described.columns) name
        );
    END LOOP;
END
$forget$;
